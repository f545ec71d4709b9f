"""How the documentation is built: `sh run docs`, that is `sphinx-build -W docs docs/_build/html`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import jaxmgrit  # noqa: E402

project = "jaxmgrit"
author = "the jaxmgrit developers"
copyright = author  # noqa: A001 (Sphinx's name for it)
version = release = jaxmgrit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "api_pages",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"jaxmgrit {version}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# A reference in prose that leads nowhere fails. Types in signatures need not be documented: most are JAX's.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*"), ("py:data", ".*")]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
