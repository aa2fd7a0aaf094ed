#!/bin/sh
# Makes target/bench/venv with the Python servers of requirements.txt and the sendgate wheel that scripts/setup-python.sh
# has left in target/wheels. Does nothing if nothing changed. What can't be installed is named, and the benchmarks then
# leave it out: this never fails.
#
# PYTHON picks another interpreter than python3.
set -u

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/target/bench/venv
python=${PYTHON:-python3}

say() { echo "setup-peers: $*" >&2; }

mkdir -p "$root/target/bench"
interpreter=$("$python" -c 'import sys; print(sys.executable, sys.version)')
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/.interpreter" 2>/dev/null)" != "$interpreter" ]; then
    rm -rf "$venv"
    if ! "$python" -m venv "$venv"; then
        say "$python has no venv module (Debian: python3-venv): no Python server is measured"
        exit 0
    fi
    echo "$interpreter" > "$venv/.interpreter"
fi

# One by one, so that what can't be had doesn't keep the others out.
install() { # STAMP NAME ARGUMENTS...
    stamp=$venv/.$2
    if [ "$(cat "$stamp" 2>/dev/null)" = "$1" ]; then return; fi
    name=$2
    wanted=$1
    shift 2
    if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; then
        echo "$wanted" > "$stamp"
    else
        rm -f "$stamp"
        say "$name could not be installed: it is not measured"
    fi
}

grep -v '^#' "$root/bench/requirements.txt" | while read -r requirement; do
    install "$requirement" "${requirement%%==*}" "$requirement"
done
for wheel in "$root"/target/wheels/sendgate-*.whl; do
    if [ -f "$wheel" ]; then install "$(cksum < "$wheel")" sendgate --force-reinstall "$wheel"; fi
done
