#!/bin/sh
# Makes libsendgate0 and libsendgate-dev for the Debian that this runs on, in target/deb, and prints their paths. Needs
# debhelper. The sources are not copied: debian/rules calls this checkout's `make install`.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if ! command -v dh >/dev/null || ! command -v dpkg-buildpackage >/dev/null; then
    echo "deb: debhelper is not installed (apt-get install debhelper)" >&2
    exit 1
fi
rm -rf "$root/target/deb"
mkdir -p "$root/target/deb/sendgate"
cp -R "$root/packaging/debian" "$root/target/deb/sendgate/debian"
cd "$root/target/deb/sendgate"
# dh gives the build a home directory of its own, where rustup would find nothing.
export SOURCE="$root" CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}"
# Our caller's make is not the one that builds the package. --no-check-builddeps: cargo may be none of Debian's.
if ! env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL \
    dpkg-buildpackage --build=binary --no-sign --no-check-builddeps >"$root/target/deb.log" 2>&1; then
    cat "$root/target/deb.log" >&2
    exit 1
fi
cd "$root"
ls target/deb/*.deb
