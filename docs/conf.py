"""Configuration of the documentation: `make docs` builds it without network access."""

import os

import skbilevel

project = "skbilevel"
author = "The skbilevel developers"
copyright = author
version = release = skbilevel.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
# Sphinx-gallery keeps classes in its configuration, which cannot be stored between builds.
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
# The docstrings give the types, in words.
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# Inventories of other projects have to be fetched, which fails without a network.
intersphinx_mapping = {}
if os.environ.get("DOCS_ONLINE") == "1":
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "plot_",
    "doc_module": ("skbilevel",),
    "backreferences_dir": "api/generated/backreferences",
    "download_all_examples": False,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"skbilevel {release}"
html_show_sourcelink = False
html_theme_options = {"footer_end": [], "secondary_sidebar_items": ["page-toc"]}
# The prompts of doctests are not part of what a reader copies.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
