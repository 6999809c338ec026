"""How Sphinx makes the guide: `make docs`.

Sphinx with MyST rather than MkDocs: it reads the pages where they lie, those of the repository's root too, so that
their links hold here and on GitHub alike; and it is kept up, where MkDocs has stood still since 2024.
"""

project = "trans4pass"
author = copyright = "The trans4pass authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

root_doc = "docs/index"  # the source folder is the repository's root
include_patterns = [
    "docs/**.md",
    "docs/api/*.rst",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "datasets_layout.md",
    "model_zoo.md",
]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "code"  # docstrings have `names` in single backticks
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
napoleon_use_ivar = True  # an attribute that is described in its class is not described twice

html_theme = "furo"
html_title = "trans4pass"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["guide.css"]
