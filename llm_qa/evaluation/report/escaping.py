"""Escapes every {{ }} in the HTML and the Markdown report, whatever text a model has generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"


def _picture(character: str) -> str:
    if character in "\n\t" or not (
        character < " " or "\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff"
    ):
        return character
    return chr(0x2400 + ord(character)) if character < " " else "\ufffd"


def visible(text: str) -> str:
    """Text that HTML can contain: control characters as control pictures, lone surrogates as U+FFFD."""
    return "".join(map(_picture, text.replace("\r\n", "\n").replace("\r", "\n")))


_MARKDOWN = str.maketrans(
    {c: "\\" + c for c in "\\`*_[]|~$@#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": "<br>", "\t": " "}
)


def markdown_text(text: str) -> str:
    """Text escaped for Markdown, also inside a table cell: no markup, no link, no new row."""
    escaped = visible(text).translate(_MARKDOWN).replace("://", "\\://").replace("www.", "www\\.")
    return escaped.replace("\u2028", "<br>").replace("\u2029", "<br>")


def html_environment():
    """jinja2 for .html.j2: control characters are made visible, then all is escaped."""
    return _environment(visible, autoescape=True)


def markdown_environment():
    """jinja2 for .md.j2: `markdown_text` on every inserted value."""
    return _environment(markdown_text, autoescape=False)


def _environment(escape: Callable[[str], str], *, autoescape: bool):
    import jinja2
    from markupsafe import Markup

    def finalize(value):
        return value if isinstance(value, Markup) else escape("" if value is None else str(value))

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        finalize=finalize,  # applies to every value, so that none is inserted unescaped
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
