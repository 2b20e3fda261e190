"""The surface to point at: values, basin and a structure of every bin, in the page itself and without a network.

Structures are drawn by 3Dmol.js (Rego and Koes 2015, doi:10.1093/bioinformatics/btu829), whose file and licence are in
`assets/`.
"""

from __future__ import annotations

import base64
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from .figures import RunData
from .pages import asset, data_block

__all__ = ["interactive_surface", "scripts"]

MOST_BINS = 20_000
"""Bins of a surface that a browser draws well."""
COLOURS = 64


def is_interactive(run: RunData) -> bool:
    """Return whether the surface has one or two CVs, a bin with a value, and no more bins than can be drawn."""
    surface = run.data["surface"]
    return surface.ndim <= 2 and surface.size <= MOST_BINS and bool(np.isfinite(surface).any())


def interactive_surface(run: RunData) -> list[str]:
    """Return the HTML of the surface to point at, and its data; nothing where it cannot be drawn.

    It is hidden until its script runs, and on paper.
    """
    if not is_interactive(run):
        return []
    return [
        '<div id="surface" hidden><div>'
        '<svg id="surface-map" tabindex="0" role="application" aria-label="free-energy surface"></svg></div>'
        '<div><div id="surface-values" aria-live="polite"></div><div id="surface-structure"></div>'
        '<div id="surface-note"></div></div>'
        '<p><label><input type="radio" name="quantity" value="value" checked> free energy</label> '
        '<label><input type="radio" name="quantity" value="error"> standard error</label></p>'
        "<p>Point at a bin; click, or press Enter, to hold it; arrow keys move, Escape lets go. Drag the structure to "
        "turn it. White lines part the basins.</p></div>",
        data_block("surface-data", _data(run)),
    ]


def scripts(run: RunData) -> list[str]:
    """Return the scripts that the surface needs: the viewer of structures only where there are some."""
    if not is_interactive(run):
        return []
    viewer = [asset("3Dmol-min.js")] if "structures" in run.data else []
    return [*viewer, asset("surface.js")]


def _data(run: RunData) -> dict[str, Any]:
    data, surface = run.data, run.data["surface"]
    content: dict[str, Any] = {
        "shape": surface.shape,
        "edges": [run.edges(k).tolist() for k in range(surface.ndim)],
        "periodic": [cv["period"] is not None for cv in run.cvs],
        "cvs": [
            {
                "name": cv["name"],
                "axis": run.axis(k, plain=True),
                "unit": {"rad": "°", "": ""}.get(cv["unit"], f" {cv['unit']}"),
                "degrees": cv["unit"] == "rad",
            }
            for k, cv in enumerate(run.cvs)
        ],
        "value": _rounded(surface),
        "error": _rounded(data["surface_error"]),
        "untrusted": data.get("untrusted", np.zeros(surface.shape, dtype=bool)).ravel().astype(int).tolist(),
        "basin": data.get("basins", np.full(surface.shape, -1)).ravel().tolist(),
        "basins": [
            {"label": basin["label"], "at": at} for basin, at in zip(run.basins, run.basin_places(), strict=True)
        ],
        "viridis": _colours("viridis"),
        "cividis": _colours("cividis"),
        "structure_bins": data["structure_bins"].tolist() if "structures" in data else [],
        "coordinates": "",
    }
    if "structures" in data:
        packed = np.ascontiguousarray(data["structures"], dtype="<i2").tobytes()
        content["coordinates"] = base64.b64encode(packed).decode("ascii")
        content["elements"], content["bonds"] = run.about["elements"], run.about["bonds"]
    return content


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 4) for v in values.ravel()]


def _colours(name: str) -> list[str]:
    return [to_hex(colour) for colour in matplotlib.colormaps[name](np.linspace(0, 1, COLOURS))]
