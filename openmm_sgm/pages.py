"""Pieces of a self-contained HTML page: one file that opens from disk without a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = ["drawing", "escape", "figure", "page", "table"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { color: #555; font-size: .9rem; }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere; }
.warnings { border-left: .3rem solid #d55e00; padding: .2rem 1rem; background: #fff6ef; }
@media print { body { margin: 0; max-width: none; } figure { break-inside: avoid; } }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """Return a whole page; `title` is text, `sections` are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def escape(text: Any) -> str:
    """Return text that may stand in HTML."""
    return html.escape(str(text))


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
