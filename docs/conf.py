"""Sphinx makes one site of the pages and of the API reference, which comes from the docstrings: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone

import roast_optim

project = "roast_optim"
version = release = roast_optim.__version__
html_title = f"roast_optim {version}"
html_theme = "alabaster"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]

# The sources are the whole clone, so that pages link to whatever is in it as they do elsewhere.
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**",
    "benchmarks/**/results/**",
    "benchmarks/gpu/README.md",
    "benchmarks/robustness/PROTOCOL.md",
    "tests/README.md",
]
html_extra_path = ["site_root"]

# A link to a page or to a heading of a page that is not there is a warning, and `make docs` fails on warnings.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
