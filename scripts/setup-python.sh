#!/bin/sh
# Makes .venv in the checkout and installs the package, built from it, into it. Does nothing if nothing changed.
#
#   scripts/setup-python.sh         what running the package needs: maturin, cffi, the wheel
#   scripts/setup-python.sh --dev   also what testing and linting need
#   scripts/setup-python.sh --wheel only the tools, with what scripts/package-python.sh needs
#
# Needs cargo, a C linker and python3. PYTHON picks another interpreter than python3. Where the venv module is missing
# (Debian) and this runs as root, python3-venv is installed. The wheel is left in target/wheels.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv
python=${PYTHON:-python3}
requirements=$root/bindings/python/requirements-build.txt
case "${1:-}" in
    '') ;;
    --dev) requirements=$root/bindings/python/requirements-dev.txt ;;
    --wheel) requirements=$root/bindings/python/requirements-wheel.txt ;;
    *) echo "usage: setup-python.sh [--dev | --wheel]" >&2; exit 2 ;;
esac

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "setup-python: $python is too old: the tools need Python 3.10 (the wheel itself runs on 3.9)" >&2
    exit 1
fi

say() { echo "setup-python: $*" >&2; }

# Two makes at once must not install over each other. Where flock is missing they are on their own.
mkdir -p "$root/target"
exec 9>"$root/target/setup-python.lock"
if command -v flock >/dev/null; then flock 9; fi

hash_of() { cat "$@" | cksum; }

# The interpreter is part of the stamp: a venv doesn't survive its removal or a new minor version.
tools_stamp="$("$python" -c 'import sys; print(sys.executable, sys.version)') $(hash_of "$root"/bindings/python/requirements-*.txt)"

if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/.tools" 2>/dev/null)" != "$tools_stamp" ]; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "installing python3-venv"
            apt-get install -y -qq python3-venv >&2 || { apt-get update -qq >&2 && apt-get install -y -qq python3-venv >&2; }
        else
            say "python3 has no venv module: install it (Debian: apt-get install python3-venv)"
            exit 1
        fi
    fi
    say "making $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo "$tools_stamp" > "$venv/.tools"
fi

# Which lists are installed: --dev includes the other.
if ! grep -qsx "$(basename "$requirements")" "$venv/.installed"; then
    say "installing $(basename "$requirements")"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
    for list in requirements-build.txt "$(basename "$requirements")"; do
        grep -qsx "$list" "$venv/.installed" || echo "$list" >> "$venv/.installed"
    done
fi

if [ "${1:-}" = --wheel ]; then exit 0; fi

# Everything that the wheel is made of.
inputs() {
    find "$root/src" "$root/bindings/python/src/sendgate" "$root/include" \
        -name _native -prune -o -name __pycache__ -prune -o -type f -print
    for file in Cargo.toml Cargo.lock build.rs bindings/python/README.md pyproject.toml LICENSE-APACHE LICENSE-MIT \
        scripts/cffi_header.py scripts/third_party.py scripts/setup-python.sh; do
        if [ -f "$root/$file" ]; then echo "$root/$file"; fi
    done
}
wheel_stamp=$(inputs | LC_ALL=C sort | while IFS= read -r file; do echo "$file"; cksum < "$file"; done | cksum)

if [ "$(cat "$venv/.wheel" 2>/dev/null)" != "$wheel_stamp" ]; then
    say "building the wheel"
    wheels=$root/target/wheels
    rm -rf "$wheels"
    "$venv/bin/python" "$root/scripts/cffi_header.py" >/dev/null
    "$venv/bin/python" "$root/scripts/third_party.py" >/dev/null
    # The venv's interpreter, also if VIRTUAL_ENV or CONDA_PREFIX name another. A wheel for this machine alone needs
    # no check against the manylinux rules. maturin's own words are only of interest if it fails.
    if ! (
        cd "$root"
        env -u VIRTUAL_ENV -u CONDA_PREFIX PATH="$venv/bin:$PATH" "$venv/bin/maturin" build --release --locked \
            --compatibility linux --interpreter "$venv/bin/python" --out "$wheels"
    ) >"$root/target/maturin.log" 2>&1; then
        cat "$root/target/maturin.log" >&2
        exit 1
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheels"/*.whl
    echo "$wheel_stamp" > "$venv/.wheel"
    say "installed $(basename "$wheels"/*.whl)"
fi
