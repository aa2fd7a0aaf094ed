#!/bin/sh
# Feeds a parser with whatever finds new ways through it: fuzz.sh TARGET SECONDS, a target being a file in tests/fuzz.
#
# libFuzzer, on the library with clang's coverage counters, which stable Rust can be told to put in. The inputs that it
# has found are kept in target/fuzz/TARGET; one that fails is left in the current directory, and is to become a test.
set -eu
cd "$(dirname "$0")/.."
target=${1:?fuzz.sh TARGET SECONDS}
seconds=${2:-600}
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags="$flags -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
# A target given by name keeps the flags away from build scripts.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="$flags" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true \
    CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
    cargo build --release --lib --locked --target "$host" --target-dir target/fuzz/build
clang -g -O1 -fsanitize=fuzzer,address -Iinclude "tests/fuzz/$target.c" "target/fuzz/build/$host/release/libsendgate.a" \
    -lpthread -ldl -lm -o "target/fuzz/$target.program"
mkdir -p "target/fuzz/$target"
"target/fuzz/$target.program" -max_total_time="$seconds" -max_len=4096 -print_final_stats=1 "target/fuzz/$target"
