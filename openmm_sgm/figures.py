"""The pictures of a report, drawn from what a run's folder holds."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .files import open_table, read_arrays, read_json
from .units import thermal_energy

__all__ = [
    "RunData",
    "below",
    "contour_step",
    "draw_consistency",
    "draw_energies",
    "draw_history",
    "draw_labels",
    "draw_overlap",
    "draw_surface",
    "draw_training",
]

FREE_ENERGY = "free energy (kJ/mol)"
STANDARD_ERROR = "standard error (kJ/mol)"
NOTHING = "#dddddd"
UNTRUSTED = "windows disagree here: not to be trusted"
SIMULATED, GENERATED, REWEIGHTED = "#0072b2", "#d55e00", "#009e73"  # Okabe & Ito, told apart by colour-blind eyes


class RunData:
    """What the report is made of, read from the folder."""

    def __init__(self, folder: Path) -> None:
        self.result: dict[str, Any] = read_json(folder / "result.json")
        self.about: dict[str, Any] = read_json(folder / "diagnostics.json")
        self.data = read_arrays(folder / "diagnostics.npz")
        with open_table(folder / "ledger.csv") as file:
            row: dict[str, Any] = {}
            self.verdicts: Counter[tuple[str, str]] = Counter()
            for row in csv.DictReader(file):
                self.verdicts[row["purpose"], row["verdict"]] += 1
        if not row or None in row.values():
            raise ValueError("ledger.csv ends too early")
        self.cvs: list[dict[str, Any]] = self.about["cvs"]
        self.height = float(self.about["heights_kj_mol"]["surface"])
        self.kt = thermal_energy(float(self.about["temperature_k"]))
        self.basins: list[dict[str, Any]] = self.result.get("basins", [])

    def scale(self, k: int) -> float:
        """Return what CV k is multiplied with for a plot: degrees for torsions and angles."""
        return 180 / np.pi if self.cvs[k]["unit"] == "rad" else 1.0

    def basin_places(self) -> list[list[float]]:
        """Return the minimum of each basin in the units of the plots."""
        places = [list(basin["minimum"].values()) for basin in self.basins]
        return [[v * self.scale(k) for k, v in enumerate(place)] for place in places]

    def axis(self, k: int, plain: bool = False) -> str:
        """Return the axis label of CV k, for matplotlib or plain."""
        unit = {"rad": " (°)", "": ""}.get(self.cvs[k]["unit"], f" ({self.cvs[k]['unit']})")
        name = str(self.cvs[k]["name"])
        return (name if plain else name.replace("$", r"\$")) + unit

    def value(self, k: int, value: float) -> str:
        """Return a value of CV k in words."""
        unit = {"rad": "°", "": ""}.get(self.cvs[k]["unit"], f" {self.cvs[k]['unit']}")
        return f"{value * self.scale(k):.3g}{unit}"

    def edges(self, k: int) -> np.ndarray:
        """Return the bin edges of CV k in the unit of the plot."""
        return self.data[f"edges_{k}"] * self.scale(k)


def draw_surface(run: RunData) -> Figure:
    values, errors = run.data["surface"], run.data["surface_error"]
    doubtful = run.data.get("untrusted", np.zeros(values.shape, dtype=bool)) & np.isfinite(values)
    if values.ndim == 1:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        x = 0.5 * (run.edges(0)[1:] + run.edges(0)[:-1])
        axes.plot(x, values, color=SIMULATED)
        axes.fill_between(x, values - errors, values + errors, color=SIMULATED, alpha=0.3, label="± standard error")
        axes.set(xlabel=run.axis(0), ylabel=FREE_ENERGY)
        for k in np.flatnonzero(np.isnan(values)):
            label = None if axes.patches else "nothing is known"
            axes.axvspan(*run.edges(0)[k : k + 2], color=NOTHING, lw=0, label=label)
        if doubtful.any():
            axes.plot(x[doubtful], values[doubtful], "x", color=GENERATED, label=UNTRUSTED)
        for basin, (at,) in zip(run.basins, run.basin_places(), strict=True):
            _letter(axes, basin["label"], at, float(values[np.argmin(np.abs(x - at))]))
        axes.legend(frameon=False)
        return figure
    pairs = list(itertools.combinations(range(values.ndim), 2))
    figure = Figure(figsize=(11, 4.4 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), 2, squeeze=False)
    for (first, second), (left, right) in zip(pairs, grid, strict=True):
        others = tuple(k for k in range(values.ndim) if k not in (first, second))
        projected, projected_error = _project(values, errors, others, run.kt)
        for axes, image, colours, label in (
            (left, projected, "viridis", FREE_ENERGY),
            (right, projected_error, "cividis", STANDARD_ERROR),
        ):
            mesh = axes.pcolormesh(run.edges(first), run.edges(second), image.T, cmap=colours, rasterized=True)
            if axes is right and np.isfinite(image).any():  # a few bins at the rim must not hide the others
                top = float(np.nanquantile(image, 0.98))
                mesh.set_clim(float(np.nanmin(image)), top)
            above = axes is right and np.nanmax(image, initial=-np.inf) > mesh.get_clim()[1]
            figure.colorbar(mesh, ax=axes, label=label, extend="max" if above else "neither")
            axes.set_facecolor(NOTHING)
            if axes is right and np.isnan(image).any():
                axes.set_title("grey: nothing is known", fontsize=9)
            axes.set(xlabel=run.axis(first), ylabel=run.axis(second))
            _degree_ticks(run, axes, first, second)
        x, y = (0.5 * (edge[1:] + edge[:-1]) for edge in (run.edges(first), run.edges(second)))
        if min(projected.shape) > 2 and np.isfinite(projected).any():
            levels = np.arange(0, np.nanmax(projected), contour_step(run))
            left.contour(x, y, np.ma.masked_invalid(projected).T, levels=levels, colors="white", linewidths=0.6)
        marked = np.argwhere(doubtful.any(axis=others))
        if len(marked):
            left.plot(x[marked[:, 0]], y[marked[:, 1]], "x", color=GENERATED, markersize=4)
            left.set_title(f"× {UNTRUSTED}", color=GENERATED, fontsize=9)
        for basin, place in zip(run.basins, run.basin_places(), strict=True):
            _letter(left, basin["label"], place[first], place[second])
    return figure


def _letter(axes: Axes, label: str, x: float, y: float) -> None:
    halo = [patheffects.withStroke(linewidth=3, foreground="black")]
    axes.text(x, y, label, color="white", weight="bold", ha="center", va="center", path_effects=halo, fontsize=12)


def _project(
    values: np.ndarray, errors: np.ndarray, others: tuple[int, ...], kt: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return −kT log of the probability summed over the `others`, and the bins' errors, RMS by probability."""
    if not others:
        return values, errors
    probability = np.nan_to_num(np.exp(-values / kt))
    total = probability.sum(axis=others)
    with np.errstate(divide="ignore", invalid="ignore"):
        projected = np.where(total > 0, -kt * np.log(total), np.nan)
        variance = (probability * np.nan_to_num(errors) ** 2).sum(axis=others) / total
    return projected - np.nanmin(projected), np.sqrt(variance)


def draw_labels(run: RunData) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    columns = figure.subplots(1, 2)
    for axes, values, label in zip(
        columns, (run.data["acceptance"], run.data["ess"]), ("acceptance", "effective sample size"), strict=True
    ):
        known = np.isfinite(values)
        if len(run.cvs) == 2:
            _window_map(run, figure, axes, values, label)
        elif len(run.cvs) == 1:
            x = run.data["centers"][known, 0] * run.scale(0)
            axes.plot(x, values[known], "o-", color=SIMULATED)
            axes.set(xlabel=run.axis(0), ylabel=label, ylim=(0, 1))
        else:
            axes.hist(values[known], bins=np.linspace(0, 1, 21), color=SIMULATED)
            axes.set(xlabel=label, ylabel="labels")
    return figure


def _window_map(run: RunData, figure: Figure, axes: Axes, values: np.ndarray, label: str) -> None:
    """Draw one number per window of a two-dimensional grid, between 0 and 1."""
    first, second = (np.unique(run.data["centers"][:, k]) for k in range(2))
    image = values.reshape(len(first), len(second))
    edges = []
    for k, axis in enumerate((first, second)):
        half = (axis[1] - axis[0]) / 2 if len(axis) > 1 else 0.5
        edges.append(np.append(axis - half, axis[-1] + half) * run.scale(k))
    mesh = axes.pcolormesh(*edges, image.T, cmap="viridis", vmin=0, vmax=1, rasterized=True)
    figure.colorbar(mesh, ax=axes, label=label)
    axes.set(xlabel=run.axis(0), ylabel=run.axis(1))
    _degree_ticks(run, axes, 0, 1)


def draw_energies(run: RunData) -> Figure:
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    d = run.data
    low = below(run, d["micro"], run.height)
    low &= np.isin(np.arange(len(low)), d["simulated_windows"]) & np.isin(np.arange(len(low)), d["generated_windows"])
    simulated, generated = low[d["simulated_windows"]], low[d["generated_windows"]]
    if not low.any():
        axes.text(0.5, 0.5, "no window has both", ha="center", transform=axes.transAxes)
        return figure
    windows, y = d["generated_windows"][generated], d["generated_energies"][generated]
    log_weights = d["generated_log_weights"][generated]
    weights, mean = np.zeros(len(y)), np.zeros(len(low))
    for window in np.flatnonzero(low):
        rows = windows == window
        w = np.exp(log_weights[rows] - log_weights[rows].max())
        weights[rows] = w / w.sum() * rows.sum()
        mean[window] = w @ y[rows] / w.sum()
    x = d["simulated_energies"][simulated] - mean[d["simulated_windows"][simulated]]
    y = y - mean[windows]
    low_end, high_end = np.quantile(np.concatenate([x, y]), [0.001, 0.98])
    bins = np.linspace(low_end, high_end, 45).tolist()
    for values, w, colour, label in (
        (x, None, SIMULATED, "simulated"),
        (y, None, GENERATED, "generated, as drawn"),
        (y, weights, REWEIGHTED, "generated, reweighted"),
    ):
        axes.hist(values, bins, weights=w, density=True, histtype="step", linewidth=1.6, color=colour, label=label)
    axes.set(xlabel="potential energy − window mean (kJ/mol)", ylabel="density (mol/kJ)")
    axes.legend(frameon=False)
    return figure


def draw_consistency(run: RunData) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    d = run.data
    both = np.isfinite(d["difference"])
    if not both.any():
        left.text(0.5, 0.5, "no window has both estimates", ha="center", transform=left.transAxes)
        return figure
    height = d["micro"] - np.nanmin(d["micro"])
    error = np.hypot(d["micro_error"], d["macro_error"])
    macro = height - d["difference"]
    top = float(np.max(height[both]))
    left.plot([0, top], [0, top], color="0.6", linewidth=1)
    left.errorbar(
        macro[both], height[both], d["micro_error"][both], d["macro_error"][both],
        fmt="o", markersize=3, linewidth=0.8, color=SIMULATED,
    )  # fmt: skip
    left.set(xlabel="MBAR (kJ/mol)", ylabel="generator (kJ/mol)", title="free energy of each window")
    right.axhline(0, color="0.6", linewidth=1)
    right.axvline(run.height, color="0.6", linewidth=1, linestyle="--")
    right.errorbar(
        height[both], d["difference"][both], error[both], fmt="o", markersize=3, linewidth=0.8, color=SIMULATED
    )
    right.set(xlabel="window free energy (kJ/mol)", ylabel="generator − MBAR (kJ/mol)", title="difference")
    return figure


def draw_overlap(run: RunData) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    overlap = run.data["overlap"]
    mesh = left.imshow(np.sqrt(overlap), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(mesh, ax=left, label="overlap")
    ticks = np.array([0.0, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0])
    bar.set_ticks(np.sqrt(ticks).tolist(), labels=[f"{t:g}" for t in ticks])
    left.set(xlabel="window, in order of its number", ylabel="window")
    strongest = (overlap - np.diag(np.diag(overlap))).max(axis=1, initial=0)
    right.hist(strongest, bins=np.linspace(0, max(0.5, strongest.max(initial=0)), 30), color=SIMULATED)
    right.axvline(0.03, color="0.3", linestyle="--", linewidth=1)
    right.set(xlabel="largest overlap with another window", ylabel="windows")
    return figure


def draw_history(run: RunData) -> Figure:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    columns = figure.subplots(1, 3)
    history = run.result["history"]
    x = np.array([record["force_evaluations"] for record in history]) / 1000
    for axes, key, label in zip(
        columns,
        ("error_kj_mol", "covered", "seconds"),
        ("standard error, RMS (kJ/mol)", "share of bins sampled", "seconds of work"),
        strict=True,
    ):
        values = [np.nan if record[key] is None else record[key] for record in history]
        axes.plot(x, values, "o-", color=SIMULATED)
        axes.set(xlabel="force evaluations (thousands)", ylabel=label)
        axes.set_ylim(bottom=0)
    return figure


def draw_training(run: RunData) -> Figure:
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    trainings = run.result["trainings"]
    for k, training in enumerate(trainings):
        steps, losses = zip(*training["held_out"], strict=True)
        shade = matplotlib.colormaps["viridis"](k / max(1, len(trainings)))
        axes.plot(steps, losses, "o-", markersize=3, color=shade, label=f"{training['frames']:,} frames")
    axes.set(xlabel="step", ylabel="held-out loss")
    axes.legend(frameon=False, fontsize=8)
    return figure


def below(run: RunData, values: np.ndarray, height: float) -> np.ndarray:
    if not np.isfinite(values).any():
        return np.zeros(len(values), dtype=bool)
    return values - np.nanmin(values) < height


def contour_step(run: RunData) -> float:
    return 5.0 if np.nanmax(run.data["surface"]) > 10 else 1.0


def _degree_ticks(run: RunData, axes: Axes, first: int, second: int) -> None:
    for k, axis in ((first, axes.xaxis), (second, axes.yaxis)):
        if run.cvs[k]["period"] is not None and run.cvs[k]["unit"] == "rad":
            axis.set_ticks([-180, -90, 0, 90, 180])
