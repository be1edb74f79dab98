"""Sphinx builds the documentation site from these settings: `make docs`."""

project = "lowmem-if"
author = "The lowmem-if authors"
copyright = "2026, The lowmem-if authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

smartquotes = False  # `--option` in prose and headings must be found by a search

html_theme = "furo"
html_title = "lowmem-if"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
exclude_patterns = ["generators", "gpu"]

# Docstrings are plain text with `code` between single backticks.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
