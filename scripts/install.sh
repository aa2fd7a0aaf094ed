#!/bin/sh
# Installs what `make lib` and `make man` have built. Called by `make install`, which sets these:
#
#   PREFIX INCLUDEDIR LIBDIR MANDIR   where it is to be found later
#   DESTDIR                           put in front of them, for who makes a package
#   VERSION                           of the library
#   BUILT                             target/release
#   MAN                               target/man
set -eu
cd "$(dirname "$0")/.."
major=${VERSION%%.*}
to=${DESTDIR:-}
case $PREFIX in
    /*) ;;
    *) echo "install: PREFIX is $PREFIX, which isn't absolute: programs would look for the library there" >&2; exit 1 ;;
esac
# pkg-config and make separate by it.
case $PREFIX$LIBDIR$INCLUDEDIR in
    *[[:space:]]*) echo "install: a space in $PREFIX: pkg-config couldn't tell where it ends" >&2; exit 1 ;;
esac

# What is below the prefix is said relative to it, so that what was installed can be moved.
below() {
    case $1 in
        "$PREFIX"/*) echo "${1#"$PREFIX"/}" ;;
        *) echo "install: $1 is not below $PREFIX" >&2; exit 1 ;;
    esac
}
lib=$(below "$LIBDIR")
include=$(below "$INCLUDEDIR")
up() { echo "$1" | sed 's|[^/][^/]*|..|g'; }
fill() {
    sed -e "s|@PREFIX@|$PREFIX|g" -e "s|@VERSION@|$VERSION|g" \
        -e "s|@MAJOR@|$major|g" -e "s|@LIB@|$lib|g" \
        -e "s|@INCLUDE@|$include|g" -e "s|@RELATIVE@|$(up "$lib/cmake/sendgate")|g" "$1"
}

install -d "$to$INCLUDEDIR" "$to$LIBDIR/pkgconfig" "$to$LIBDIR/cmake/sendgate" "$to$MANDIR/man3" "$to$MANDIR/man7"
install -m 644 include/sendgate.h "$to$INCLUDEDIR/sendgate.h"
install -m 755 "$BUILT/libsendgate.so" "$to$LIBDIR/libsendgate.so.$VERSION"
ln -sf "libsendgate.so.$VERSION" "$to$LIBDIR/libsendgate.so.$major"
ln -sf "libsendgate.so.$major" "$to$LIBDIR/libsendgate.so"
install -m 644 "$BUILT/libsendgate.a" "$to$LIBDIR/libsendgate.a"
for file in pkgconfig/sendgate.pc cmake/sendgate/sendgate-config.cmake cmake/sendgate/sendgate-config-version.cmake; do
    fill "packaging/${file##*/}.in" > "$to$LIBDIR/$file"
    chmod 644 "$to$LIBDIR/$file"
done
install -m 644 "$MAN"/*.3 "$to$MANDIR/man3/"
install -m 644 "$MAN"/*.7 "$to$MANDIR/man7/"
