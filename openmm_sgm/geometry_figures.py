"""Pictures of bonds, angles and torsions: what the generator draws beside what is simulated."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from .figures import GENERATED, REWEIGHTED, SIMULATED, RunData
from .geometry import KINDS

__all__ = ["draw_bonds_and_angles", "draw_torsions", "geometry_in_words"]

COLOURS = (SIMULATED, GENERATED, REWEIGHTED)
STYLES = ("-", "--", "-")
UNITS = {"bond": ("pm", 1000.0), "angle": ("°", 180 / np.pi)}


def draw_bonds_and_angles(run: RunData) -> Figure:
    """Draw mean and spread of every bond and angle, generated minus simulated."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    columns = figure.subplots(1, 4)
    for k, (kind, (unit, scale)) in enumerate(UNITS.items()):
        for axes, what in zip(columns[2 * k : 2 * k + 2], ("mean", "spread"), strict=True):
            values = scale * run.data[f"geometry_{kind}_{what}"]
            axes.axhline(0, color="0.6", linewidth=1)
            for row, marker in ((1, "o"), (2, "x")):
                axes.plot(values[0], values[row] - values[0], marker, color=COLOURS[row], ms=4, label=KINDS[row])
            axes.set(xlabel=f"{kind} {what}, simulated ({unit})", title=f"{kind}s: {what}")
            axes.margins(y=0.2)
    columns[0].set_ylabel("generated − simulated (pm; °)")
    handles, labels = columns[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def draw_torsions(run: RunData) -> Figure:
    """Draw the histograms of the torsions."""
    histograms, names = run.data["geometry_histograms"], run.data["geometry_torsion_names"]
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(11, 2.6 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    edges = np.linspace(-180, 180, histograms.shape[2] + 1)
    for n, (axes, name) in enumerate(zip(panels, names, strict=False)):
        for row, kind in enumerate(KINDS):
            density = histograms[row, n] * np.pi / 180
            axes.stairs(density, edges, color=COLOURS[row], linestyle=STYLES[row], linewidth=1.3, label=kind)
        axes.set(title=str(name).replace("$", r"\$").replace(" (", "\n("), yticks=[])
        axes.set_xticks([-180, -90, 0, 90, 180])
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(names) - across) : len(names)]:
        axes.set_xlabel("torsion (°)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def geometry_in_words(run: RunData) -> str:
    """Return the largest differences of the reweighted generated configurations from the simulated ones."""
    parts = []
    for kind, (unit, scale) in UNITS.items():
        mean, spread = (scale * run.data[f"geometry_{kind}_{what}"] for what in ("mean", "spread"))
        if mean.shape[1]:
            largest = np.abs(mean[2] - mean[0]).max()
            wider = np.abs(spread[2] - spread[0]).max()
            separator = "" if unit == "°" else " "
            parts.append(
                f"the mean of a{'n' if kind == 'angle' else ''} {kind} differs by at most "
                f"{largest:.2g}{separator}{unit} and its spread by {wider:.2g}{separator}{unit}"
            )
    return f"Reweighted generated against simulated, {'; '.join(parts)}." if parts else ""
