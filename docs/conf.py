"""How Sphinx makes the documentation site out of the Markdown in the repository: make site, then target/site."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from c_header import version as _version

project = "sendgate"
version = release = _version()
html_title = f"sendgate {version}"
html_show_copyright = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "site_pages"]

# The source directory is the repository, so that relative links mean the same on GitHub and here.
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "*.md",
    "bench/README.md",
    "tests/cases/README.md",
    "tests/differential/README.md",
]
# README.md is GitHub's start page; docs/index.md is this one's.
exclude_patterns = ["README.md", "target", ".venv", ".git", ".*_cache"]

# Anchors as GitHub makes them, for headings of any level.
myst_heading_anchors = 6
# "--offload" is no dash.
smartquotes = False
# A block without a language is text.
highlight_language = "none"

nitpicky = True
nitpick_ignore_regex = [
    # What C has by itself.
    ("c:identifier", r"u?int\d+_t|size_t"),
    # The standard library, frameworks, and names that only type checkers see: their pages are elsewhere, or nowhere.
    ("py:class", r"(?!sendgate\.).*"),
    ("py:class", r"sendgate\.(_\w+\.\w+|gunicorn\.Body)"),
]

# Names of a module as in __all__, which is sorted; members as they are written.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
# A long signature has a line for each argument.
maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
