"""Pieces of a self-contained HTML page: one file that opens from disk without a network.

Every value on a page goes through these functions, which escape it: what stands in a run's files may be anyone's. No
other module puts a value into HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import resources
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = [
    "asset",
    "copied_text",
    "data_block",
    "details",
    "drawing",
    "escape",
    "figure",
    "heading",
    "listing",
    "page",
    "paragraph",
    "table",
]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; }
th:last-child:not(:first-child) { text-align: right; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { color: #555; font-size: .9rem; }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere; }
.warnings { border-left: .3rem solid #d55e00; padding: .2rem 1rem; background: #fff6ef; }
#surface { display: grid; grid-template-columns: 30rem 1fr; gap: .3rem 1.2rem; margin: 1rem 0; }
#surface[hidden] { display: none; }
#surface svg { width: 100%; touch-action: none; cursor: crosshair; } #surface svg:focus { outline: 2px solid #0072b2; }
#surface svg text { font-size: 12px; fill: #222; } #surface .bin { shape-rendering: crispEdges; }
#surface svg .basin { font: bold 17px system-ui, sans-serif; fill: #fff; stroke: #000; stroke-width: 3px;
  paint-order: stroke; pointer-events: none; }
#surface .axis { stroke: #666; } #surface .border { stroke: #fff; stroke-width: 1.6; fill: none; }
#surface .curve { stroke: #0072b2; fill: none; } #surface .point { fill: #0072b2; }
#surface .error { stroke: #56b4e9; stroke-width: 3; }
#surface .cursor { stroke: #d55e00; stroke-width: 2; } #surface .held { stroke-width: 4; }
#surface-values { min-height: 8rem; font-variant-numeric: tabular-nums; }
#surface-values div:first-child { font-weight: 600; }
#surface-structure { position: relative; height: 17rem; border: 1px solid #ddd; }
#surface p, #surface-note { color: #555; font-size: .9rem; margin: .2rem 0; }
@media (max-width: 56rem) { #surface { grid-template-columns: 1fr; } }
ol.references { font-size: .9rem; }
@media print {
  body { margin: 0; max-width: none; font-size: 11pt; }
  #surface, button { display: none; }
  figure, table, .warnings { break-inside: avoid; } h2 { break-after: avoid; } img { max-height: 22cm; }
}
"""
_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src "


def page(title: str, sections: Sequence[str], scripts: Sequence[str] = ()) -> str:
    """Return a whole page; `title` is text, `sections` are HTML, `scripts` run at its end.

    The page's policy lets a browser run these scripts alone, by their digests, and load nothing from anywhere.
    """
    for script in scripts:
        if "</script" in script.lower() or "<!--" in script:
            raise ValueError("a script must not hold what would end it")
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}{allowed}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join([*sections, *(f"<script>{script}</script>" for script in scripts)])
        + "\n</body></html>\n"
    )


def asset(name: str) -> str:
    """Return a file of `assets/` as text."""
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def data_block(name: str, content: Any) -> str:
    """Return data for scripts as a JSON block of that id, in which no text can end the block."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def escape(text: Any) -> str:
    """Return text that may stand in HTML."""
    return html.escape(str(text))


def heading(text: str, level: int = 2) -> str:
    """Return a heading of any text."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, code: str = "") -> str:
    """Return a paragraph of any text, with what is typed at its end."""
    return f"<p>{escape(text)}{f' <code>{escape(code)}</code>' if code else ''}</p>"


def listing(texts: Sequence[str]) -> str:
    """Return a list of any texts."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def details(summary: str, text: str) -> str:
    """Return a text that is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{paragraph(text)}</details>"


def copied_text(name: str, text: str, lines: Sequence[str]) -> str:
    """Return a paragraph and lines below it, under that id, with a button that copies both."""
    below = "<br>".join(escape(line) for line in lines)
    return (
        f'<div id="{escape(name)}"><p>{escape(text)}</p><p class="references">{below}</p></div>'
        f'<p><button type="button" data-copies="{escape(name)}" hidden>copy with references</button></p>'
    )


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return a table; the last cell of a row is set as a number."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)] if head else []
    for row in rows:
        cells = (f"<td{' class=number' if k == len(row) - 1 else ''}>{escape(cell)}</td>" for k, cell in enumerate(row))
        lines.append("".join(cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def drawing() -> AbstractContextManager[None]:
    """Return a context in which figures are drawn as the pages have them."""
    return matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


def figure(picture: Figure, caption: str) -> str:
    """Return a picture as a PNG inside the page, with its caption."""
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=110)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
