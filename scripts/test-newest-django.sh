#!/bin/sh
# The tests of sendgate.django on the newest Django, which wants a newer Python than Debian's: if there is one here.
#
# The virtual environment is kept in target/newest-django, and made again when what it consists of changes. The wheel that
# is tested is the one that setup-python.sh has left in target/wheels.
set -eu
cd "$(dirname "$0")/.."
requirements=bindings/python/requirements-django.txt
venv=target/newest-django

is_new() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }
python=
for name in "${PYTHON:-python3}" python3.14 python3.13 python3.12 "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python3; do
    if is_new "$name"; then python=$name; break; fi
done
if [ -z "$python" ]; then
    echo "skipped: Django $(sed -n 's/^django==//p' $requirements) needs Python 3.12, and there is none here (PYTHON=... names one)"
    exit 0
fi

stamp="$("$python" -c 'import sys; print(sys.executable, sys.version)') $(cksum < $requirements)"
if [ "$(cat $venv/.stamp 2>/dev/null)" != "$stamp" ]; then
    rm -rf $venv
    "$python" -m venv $venv
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -r $requirements
    echo "$stamp" > $venv/.stamp
fi
$venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps target/wheels/*.whl
$venv/bin/python -m pip install --quiet --disable-pip-version-check target/wheels/*.whl
exec $venv/bin/python -m pytest -p no:cacheprovider -q -rs bindings/python/tests/test_django_responses.py \
    bindings/python/tests/test_django_middleware.py bindings/python/tests/test_django_servers.py
