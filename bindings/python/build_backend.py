"""The build backend of pyproject.toml: maturin's, with the header for cffi written first.

``pip install bindings/python`` comes through here; ``scripts/setup-python.sh`` calls maturin itself.
"""

import runpy
from pathlib import Path

from maturin import *  # noqa: F403 - a build backend is a module with maturin's functions

runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "cffi_header.py"))["write"]()
