"""The documentation site: Markdown pages by MyST, the API from docstrings, Furo's theme."""

from importlib.metadata import version as version_of

project = "tune_softmax"
author = "the tune_softmax authors"
copyright = "the tune_softmax authors, MIT licence"
release = version = version_of("tune-softmax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_site"]
highlight_language = "none"  # what a command prints is no Python

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # links to headings, as GitHub makes them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # a default reads as it is written
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = "tune_softmax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_extra_path = ["experiment.schema.json"]
html_theme_options = {
    "light_css_variables": {"font-stack": "system-ui, sans-serif"},
    "dark_css_variables": {"font-stack": "system-ui, sans-serif"},
}


def _first_line_of_errors(_app, what, name, _object, _options, lines) -> None:  # noqa: ANN001
    """Leave the tree of errors to the source: it is not reStructuredText."""
    if (what, name) == ("module", "tune_softmax.errors"):
        del lines[1:]


def setup(app) -> None:  # noqa: ANN001
    """Connect what changes docstrings on their way."""
    app.connect("autodoc-process-docstring", _first_line_of_errors)
