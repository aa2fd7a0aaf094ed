#!/bin/sh
# Installs the Debian packages that the tests use, where that is possible: as root, with apt-get. Elsewhere it says
# what is missing; the tests that need it then skip, and say so too.
set -eu

missing=
need() { # COMMAND PACKAGE
    if ! PATH=$PATH:/usr/sbin command -v "$1" >/dev/null; then missing="$missing $2"; fi
}
# For what is no command.
need_file() { # FILE PACKAGE
    if [ ! -e "$1" ]; then missing="$missing $2"; fi
}
need abidiff abigail-tools
need cc gcc
need c++ g++
need clang clang
need cmake cmake
need curl curl
need dh debhelper
need dpkg-buildpackage dpkg-dev
need groff groff-base
need lighttpd lighttpd
need lintian lintian
need nginx nginx-light
need openssl openssl
need pkg-config pkg-config
need readelf binutils
need strace strace
need valgrind valgrind
# The WSGI servers that are no packages of PyPI, which run in Debian's own Python, and what sendgate needs there.
need apache2 apache2-bin
need_file /usr/lib/apache2/modules/mod_wsgi.so libapache2-mod-wsgi-py3
need_file /usr/lib/apache2/modules/mod_xsendfile.so libapache2-mod-xsendfile
need uwsgi uwsgi-core
need_file /usr/lib/uwsgi/plugins/python3_plugin.so uwsgi-plugin-python3
if ! /usr/bin/python3 -c 'import _cffi_backend' 2>/dev/null; then missing="$missing python3-cffi-backend"; fi
# The libraries that examples/hosts is built on: headers, not commands.
need_file /usr/include/civetweb.h libcivetweb-dev
need_file /usr/include/event2/http.h libevent-dev
need_file /usr/include/fcgiapp.h libfcgi-dev
need_file /usr/include/libwebsockets.h libwebsockets-dev
need_file /usr/include/microhttpd.h libmicrohttpd-dev
# The languages of examples/ffi.
need luajit luajit
if ! perl -MFFI::Platypus -e1 2>/dev/null; then missing="$missing libffi-platypus-perl"; fi
# For the TLS example of docs/c.md and tests/c/tls.c; a header, not a command.
if ! echo '#include <openssl/ssl.h>' | cc -E - >/dev/null 2>&1; then missing="$missing libssl-dev"; fi

if [ -z "$missing" ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "setup-system: not installed, and tests that need it will skip:$missing" >&2
    exit 0
fi
echo "setup-system: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# RUNLEVEL: a package's service is not started; the tests start what they need themselves.
# shellcheck disable=SC2086 # a list of words
install() { RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >/dev/null; }
install || { apt-get update -qq >/dev/null && install; }
