"""The build backend of pyproject.toml: maturin's, with the header for cffi and the licences written first.

``pip install .`` comes through here, and ``pip install`` of the sdist; scripts/setup-python.sh calls maturin itself.
"""

import runpy
from pathlib import Path

from maturin import *  # noqa: F403 - a build backend is a module with maturin's functions

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
for script in ("cffi_header.py", "third_party.py"):
    runpy.run_path(str(SCRIPTS / script))["write"]()
