"""Sphinx configuration; `make docs` builds with warnings as errors."""

from importlib import metadata

project = "openmm_sgm"
author = "the openmm_sgm developers"
release = metadata.version("openmm_sgm")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.autosummary"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "openmm_sgm"
exclude_patterns = ["_build"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True
# Links to files of the repository, which the built pages do not hold; attributes of equal name in several classes.
suppress_warnings = ["myst.xref_missing", "ref.python"]
