"""How the site is built: `make docs`, into docs/_build/html."""

import hashlib
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(ROOT))

import pyrovae  # noqa: E402

project = "pyrovae"
author = "The pyrovae authors"
copyright = "2026, the pyrovae authors"
version = release = pyrovae.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathml",
]
exclude_patterns = ["_build", "_ext"]
language = "en"

# -- pages and notebooks ------------------------------------------------------------------------

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3


def _sources() -> str:
    """A word for the code that notebooks run: what a page showed of other code is not shown."""
    words = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
    bundled = ROOT / "pyrovae" / "explorer" / "source"  # as pyrovae/explorer/assets
    for path in sorted((ROOT / "pyrovae").rglob("*")):
        if path.is_file() and path.suffix != ".pyc" and bundled not in path.parents:
            words.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return words.hexdigest()[:12]


nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks" / _sources())
nb_execution_in_temp = True
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js = {}  # which would be fetched from elsewhere
# The notebooks find this library, and `pyrovae` as a command, from the folder they run in.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ.setdefault("OMP_NUM_THREADS", "1")

# -- reference ----------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Signatures say "Data" where Python says a line and a half; the page on data says what that is.
autodoc_type_aliases = {name: name for name in ("Array", "Data", "Features", "Labels", "Prior")}
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Links into the manuals of torch, Pyro and ArviZ need the network while the site is built, so that
# they are made only where they are asked for: DOCS_INTERSPHINX=1 make docs
if os.environ.get("DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
        "arviz": ("https://python.arviz.org/en/stable", None),
    }

# -- what it looks like ---------------------------------------------------------------------------

html_theme = "furo"
html_title = f"pyrovae {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_extra_path = ["llms.txt"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#6cb8e6", "color-brand-content": "#6cb8e6"},
}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _plain(app, what, name, obj, options, signature, returns):
    """A type's short name in a union, which autodoc writes as its own wrapper of the name."""
    pattern = r"TypeAliasForwardRef\('(\w+)'\)"
    return tuple(text and re.sub(pattern, r"\1", text) for text in (signature, returns))


def _links_back(app, pagename, templatename, context, doctree):
    """On a page of source let each object link to where the reference has it.

    viewcode takes all objects of a file for those of one module, but a function may stand there as
    pyrovae.novelty, and its result as pyrovae.populations.Novelty.
    """
    if not pagename.startswith("_modules/"):
        return
    known = app.env.get_domain("py").objects

    def mended(link):
        name = link[1]
        tail = name.removeprefix("pyrovae.")
        places = [name] if name in known else [full for full in known if full.endswith(f".{tail}")]
        return f"#{places[0]}" if places else link[0]

    context["body"] = re.sub(r"(?<=\.html)#(pyrovae[\w.]*)", mended, context["body"])


def setup(app):
    app.connect("autodoc-process-signature", _plain)
    app.connect("html-page-context", _links_back)
