#!/bin/sh
# Makes what is given to others, in target/dist, and prints its path. Needs what scripts/setup-python.sh needs.
#
#   scripts/package-python.sh wheel   a wheel for every Linux with this machine's processor and glibc 2.17 or later
#   scripts/package-python.sh sdist   the sources, from which pip makes a wheel elsewhere
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv
kind=${1:-}
case $kind in
    # Linked against this machine's glibc, it would need one as new. zig has the symbols of all of them. 2.17 is the
    # oldest that Rust's standard library supports.
    wheel)
        sh "$root/scripts/setup-python.sh" --wheel
        suffix=whl
        set -- build --release --locked --zig --compatibility manylinux_2_17 --interpreter "$venv/bin/python"
        ;;
    sdist)
        sh "$root/scripts/setup-python.sh"
        suffix=tar.gz
        set -- sdist
        ;;
    *) echo "usage: package-python.sh wheel | sdist" >&2; exit 2 ;;
esac

cd "$root"
mkdir -p target/dist
rm -f target/dist/sendgate-*."$suffix"
"$venv/bin/python" scripts/cffi_header.py >/dev/null
"$venv/bin/python" scripts/third_party.py >/dev/null
# The venv's interpreter, also if VIRTUAL_ENV or CONDA_PREFIX name another. maturin's own words are only of interest if
# it fails.
if ! env -u VIRTUAL_ENV -u CONDA_PREFIX PATH="$venv/bin:$PATH" "$venv/bin/maturin" "$@" --out target/dist \
    >"target/maturin-$kind.log" 2>&1; then
    cat "target/maturin-$kind.log" >&2
    exit 1
fi
ls target/dist/sendgate-*."$suffix"
