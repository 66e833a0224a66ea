"""HTML of a page that stands alone: every text escaped, figures as inline SVG in the colours of the page."""

import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --paper: #ffffff; --faint: #5f6570; --line: #d9dce1;
  --box: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7e9; --paper: #16181b; --faint: #a0a6b0; --line: #363a41; --box: #1f2226; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p, li, figcaption { max-width: 46rem; }
figcaption, .note, small { color: var(--faint); font-size: .85rem; }
small { white-space: nowrap; }
.figures { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; max-width: 30rem; color: var(--ink); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.wide { overflow-x: auto; max-width: 100%; overflow-wrap: normal; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.1rem .3rem 0; text-align: right; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; max-width: 22rem; min-width: 9rem; overflow-wrap: anywhere; }
th, td { white-space: nowrap; }
th:first-child, td:first-child { white-space: normal; }
th { font-weight: 600; }
pre { background: var(--box); padding: .7rem; overflow-x: auto; max-width: 100%; }
summary { cursor: pointer; }
"""


def escape(text: Any) -> str:
    """Text for HTML, between tags or in an attribute.

    Args:
        text: anything.

    Returns:
        the text of it; letters that no page may hold are "?".

    Example:
        >>> escape('<script>"')
        '&lt;script&gt;&quot;'
    """
    plain = str(text).encode("utf-8", "replace").decode()
    plain = "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in plain)
    return html.escape(plain)


def number(value: Any, form: str = ".4f") -> str:
    """A number, in which the page keeps all digits.

    Args:
        value: the number; anything else is shown as it is.
        form: how it is shown.

    Returns:
        HTML; a dash for None.

    Example:
        >>> number(0.25), number(None), number("<")
        ('<data value="0.25">0.2500</data>', '-', '&lt;')
    """
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return escape(value)
    return f'<data value="{value!r}">{format(value, form)}</data>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a box of its own, in which it scrolls where the page is narrow.

    Args:
        header: cells, as HTML.
        rows: cells of each row, as HTML.

    Returns:
        HTML.

    Example:
        >>> table(["a"], [["b"]])
        '<div class="wide"><table><tr><th>a</th></tr><tr><td>b</td></tr></table></div>'
    """
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def svg_of(figure: Any, name: str, ink: str) -> str:
    """A figure of matplotlib as inline SVG.

    Args:
        figure: of `fr.plots`.
        name: that its ids begin with, as no two of a page may be alike; and what it is called aloud.
        ink: the colour that becomes that of the page's text.

    Returns:
        HTML: an svg without declarations, that asks for nothing outside of the page.
    """
    written = io.BytesIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(written.getvalue())  # noqa: S314 - matplotlib wrote it
    prefix = re.sub(r"\W+", "-", name)
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            element.set(key, _on_page(key, value, prefix, ink))
    for gone in ("width", "height", "version"):
        root.attrib.pop(gone, None)
    root.set("role", "img")
    root.set("aria-label", name)
    return ET.tostring(root, encoding="unicode")


def _local(tag: str) -> str:
    """A name without its namespace, which HTML has not."""
    return tag.rpartition("}")[2]


def _on_page(key: str, value: str, prefix: str, ink: str) -> str:
    """An attribute of a figure as the page has it: ids of its own, and the colour of its text."""
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href":
        return value.replace("#", f"#{prefix}-", 1)
    return value.replace("url(#", f"url(#{prefix}-").replace(ink, "currentColor")


def page(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML.

    Returns:
        the file's text.

    Example:
        >>> page("a", "<p>b</p>").splitlines()[0]
        '<!DOCTYPE html>'
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"  # whatever a name holds: nothing runs or loads
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style></head>",
            f"<body>{body}</body></html>",
            "",
        ]
    )
