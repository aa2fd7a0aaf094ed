"""``python -m sendgate``: serve a folder."""

import sys

from ._server import main

if __name__ == "__main__":
    sys.exit(main())
