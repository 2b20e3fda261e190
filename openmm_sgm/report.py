"""`report.html`: one file that opens from disk without a network, made from what the run's folder holds."""

from __future__ import annotations

import base64
import csv
import html
import io
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .units import InputError, thermal_energy

__all__ = ["write_report"]

FREE_ENERGY = "free energy (kJ/mol)"
STANDARD_ERROR = "standard error (kJ/mol)"
LEAST_ACCEPTANCE = 0.2
MOST_DENSITY_ERROR_KT = 0.05
MOST_INCONSISTENT_KJ_MOL = 1.0
SIMULATED, GENERATED, REWEIGHTED = "#0072b2", "#d55e00", "#009e73"  # Okabe & Ito, told apart by colour-blind eyes
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


def write_report(folder: Path) -> Path:
    """Write `report.html` into a finished run's folder and return its path.

    Raises
    ------
    InputError
        where the folder holds no finished run, or its files cannot be read.
    """
    path = folder / "report.html"
    try:
        run = _Run(folder)
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no finished run: {Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"the results in {folder} are damaged: {error}") from None
    temporary = path.with_name(path.name + ".tmp")
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        temporary.write_text(_page(run), encoding="utf-8")
    temporary.replace(path)
    return path


class _Run:
    """What the report is made of, read from the folder."""

    def __init__(self, folder: Path) -> None:
        self.result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        self.about: dict[str, Any] = json.loads((folder / "diagnostics.json").read_text())
        with np.load(folder / "diagnostics.npz", allow_pickle=False) as archive:
            self.data = {name: archive[name] for name in archive.files}
        with (folder / "ledger.csv").open(newline="") as file:
            self.verdicts = Counter((row["purpose"], row["verdict"]) for row in csv.DictReader(file))
        self.cvs: list[dict[str, Any]] = self.about["cvs"]
        self.height = float(self.about["heights_kj_mol"]["surface"])
        self.kt = thermal_energy(float(self.about["temperature_k"]))

    def scale(self, k: int) -> float:
        """Return what CV k is multiplied with for a plot: degrees for torsions and angles."""
        return 180 / np.pi if self.cvs[k]["unit"] == "rad" else 1.0

    def axis(self, k: int) -> str:
        """Return the axis label of CV k."""
        unit = {"rad": " (°)", "": ""}.get(self.cvs[k]["unit"], f" ({self.cvs[k]['unit']})")
        return str(self.cvs[k]["name"]).replace("$", r"\$") + unit

    def edges(self, k: int) -> np.ndarray:
        """Return the bin edges of CV k in the unit of the plot."""
        return self.data[f"edges_{k}"] * self.scale(k)


def _page(run: _Run) -> str:
    result = run.result
    cost, wall = result["force_evaluations"], result["wall_seconds"]
    surface, asked = run.data["surface"], np.isfinite(run.data["acceptance"])
    sections = [
        f"<h1>{_e(result['system'])}: free-energy surface</h1>",
        f"<p>{cost['total']:,} force evaluations in {wall['total']:.0f} s on the {_e(result['platform'])} platform. "
        f"{np.isfinite(surface).mean():.0%} of the bins are sampled; the others are left empty.</p>",
        _warnings(run),
        _figure(_surface(run), f"Free energy and its standard error. Contours every {_contour_step(run):g} kJ/mol."),
        _table(_summary(run)),
        "<h2>The generator</h2>",
        _figure(
            _labels(run),
            f"Metropolis acceptance and effective sample size of the generated configurations, in the last round, for "
            f"each of {int(asked.sum())} labels (umbrella windows).",
        ),
        _figure(
            _energies(run),
            f"Potential energy in the windows below {run.height:g} kJ/mol, each minus its window's mean over "
            "simulated frames. Reweighted, generated configurations must agree with simulated ones.",
        ),
        "<h2>What became of the generated configurations</h2>",
        _table([[purpose, verdict, f"{n:,}"] for (purpose, verdict), n in run.verdicts.most_common()]),
        "<p>“not offered” are trials, drawn to see whether the generator can be trusted in a new window. The generator "
        "proposes only what its coordinates reach: it makes no state that no simulation has visited (such as a cis "
        "peptide bond), and never the other handedness of a chiral centre.</p>",
        "<h2>Micro-macro consistency</h2>",
        _figure(
            _consistency(run),
            f"Each window's free energy from the generator's own density, and from MBAR over the windows' simulations. "
            f"Below {run.height:g} kJ/mol they differ by {_number(result['micro_macro_rmse_kj_mol'])} kJ/mol RMS.",
        ),
        "<h2>Window overlap</h2>",
        _figure(
            _overlap(run),
            "MBAR's overlap matrix of the simulated windows, and the largest overlap of each with another. Windows "
            "below the dashed line (0.03) are joined to the others by too few samples.",
        ),
        "<h2>Cost and coverage</h2>",
        _figure(_history(run), "After the exploration and after each round."),
        _figure(_training(run), "Loss on held-out frames during each training."),
        "<h2>Windows</h2>",
        _windows(run),
        "<h2>How it was made</h2>",
        _methods(run),
        f"<p><code>{_e(result['command'])}</code></p>",
        _table([[name, version] for name, version in result["versions"].items()]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(result['system'])}: free-energy surface</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _warnings(run: _Run) -> str:
    """Return what a reader must know before the numbers, in words."""
    result, found = run.result, []
    error = result["density_error_kt"]
    if error is None or error > MOST_DENSITY_ERROR_KT:
        found.append(f"The step error of the log density, {_number(error)} kT, is above {MOST_DENSITY_ERROR_KT} kT.")
    for window, reason in result["windows"]["set_aside"].items():
        found.append(f"The window at {window} was set aside: {reason}.")
    low = _below(run, run.data["micro"], run.height)
    poor = low & (run.data["acceptance"] < LEAST_ACCEPTANCE)
    if poor.any():
        found.append(
            f"At {_places(run, poor)} fewer than {LEAST_ACCEPTANCE:.0%} of the generated configurations were accepted: "
            "the surface rests on few samples there."
        )
    apart = low & np.isnan(run.data["macro"])
    if apart.any():
        found.append(
            f"The simulations at {_places(run, apart)} do not overlap with the others: MBAR has no free energy for "
            "them, and only the generator's stands."
        )
    unknown = np.isnan(run.data["micro"]) & np.isfinite(run.data["acceptance"])
    if unknown.any():
        found.append(
            f"At {_places(run, unknown)} the generator has too few effective configurations for a free energy."
        )
    off = low & (np.abs(run.data["difference"]) > MOST_INCONSISTENT_KJ_MOL)
    off &= np.abs(run.data["difference"]) > 3 * np.hypot(run.data["micro_error"], run.data["macro_error"])
    if off.any():
        found.append(
            f"Generator and MBAR disagree at {_places(run, off)} by more than {MOST_INCONSISTENT_KJ_MOL:g} kJ/mol and "
            "three standard errors: there may be a state that one of them has not visited."
        )
    unreached = result["windows"]["left_by_the_budget"]
    if unreached:
        found.append(f"The budget ended before {_join(unreached)} could be visited.")
    if not found:
        return ""
    return '<div class="warnings"><ul>' + "".join(f"<li>{_e(text)}</li>" for text in found) + "</ul></div>"


def _summary(run: _Run) -> list[list[str]]:
    r = run.result
    cost, wall = r["force_evaluations"], r["wall_seconds"]
    return [
        ["force evaluations, simulation", f"{cost['simulation']:,}"],
        ["force evaluations, generated configurations", f"{cost['generation']:,}"],
        ["seconds: simulating, training, generating", _seconds(wall)],
        [f"standard error below {run.height:g} kJ/mol, RMS", f"{_number(r['std_error_rms_kj_mol'])} kJ/mol"],
        ["acceptance over labels, median (5th percentile)", _pair(r["acceptance"])],
        ["effective sample size over labels, median (5th percentile)", _pair(r["ess"])],
        ["step error of the log density", f"{_number(r['density_error_kt'], 3)} kT"],
        ["micro-macro consistency, RMS", f"{_number(r['micro_macro_rmse_kj_mol'])} kJ/mol"],
        ["seed", str(r["seed"])],
    ]


def _methods(run: _Run) -> str:
    names = [str(cv["name"]) for cv in run.cvs]
    return (
        f"<p>Umbrella windows over {_e(' and '.join(names))} at {run.about['temperature_k']:g} K were simulated with "
        "OpenMM (Eastman et al. 2024). A score-based generative model of whole configurations, conditioned on the "
        "window, was trained on their frames and forces, after Crabtree, Bello-Rivas and Kevrekidis (Chaos 34, 053110, "
        "2024); its exact density comes from the probability-flow ODE (Song et al. 2021). Generated configurations "
        "entered the windows by Metropolis tests with that density. The surface combines MBAR (Shirts and Chodera "
        "2008) over simulated frames with the generated configurations' importance weights; errors are from a block "
        "bootstrap. Collective variables were computed with mdtraj (McGibbon et al. 2015).</p>"
    )


def _windows(run: _Run) -> str:
    windows = run.result["windows"]
    started = "; ".join(f"{n} from {origin}" for origin, n in windows["started_from"].items())
    above = windows["above_the_explored_height"]
    text = (
        f"<p>{windows['visited']} windows were visited; they started: {_e(started)}. Windows were opened beside those "
        f"below {run.about['heights_kj_mol']['explored']:g} kJ/mol.</p>"
    )
    if above:
        text += (
            f"<details><summary>{len(above)} windows beside them were left empty, as too high</summary>"
            f"<p>{_e('; '.join(above))}</p></details>"
        )
    return text


# figures


def _surface(run: _Run) -> Figure:
    values, errors = run.data["surface"], run.data["surface_error"]
    if values.ndim == 1:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        x = 0.5 * (run.edges(0)[1:] + run.edges(0)[:-1])
        axes.plot(x, values, color=SIMULATED)
        axes.fill_between(x, values - errors, values + errors, color=SIMULATED, alpha=0.3, label="± standard error")
        axes.set(xlabel=run.axis(0), ylabel=FREE_ENERGY)
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
            (right, projected_error, "magma", STANDARD_ERROR),
        ):
            mesh = axes.pcolormesh(run.edges(first), run.edges(second), image.T, cmap=colours, rasterized=True)
            figure.colorbar(mesh, ax=axes, label=label)
            axes.set(xlabel=run.axis(first), ylabel=run.axis(second))
            _degree_ticks(run, axes, first, second)
        x, y = (0.5 * (edge[1:] + edge[:-1]) for edge in (run.edges(first), run.edges(second)))
        if min(projected.shape) > 2 and np.isfinite(projected).any():
            levels = np.arange(0, np.nanmax(projected), _contour_step(run))
            left.contour(x, y, np.ma.masked_invalid(projected).T, levels=levels, colors="white", linewidths=0.6)
    return figure


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


def _labels(run: _Run) -> Figure:
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


def _window_map(run: _Run, figure: Figure, axes: Axes, values: np.ndarray, label: str) -> None:
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


def _energies(run: _Run) -> Figure:
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    d = run.data
    low = _below(run, d["micro"], run.height)
    counts = np.bincount(d["simulated_windows"], minlength=len(low))
    with np.errstate(invalid="ignore"):
        mean = np.bincount(d["simulated_windows"], d["simulated_energies"], minlength=len(low)) / counts
    low &= counts > 0
    simulated, generated = low[d["simulated_windows"]], low[d["generated_windows"]]
    if not (simulated.any() and generated.any()):
        axes.text(0.5, 0.5, "no window has both", ha="center", transform=axes.transAxes)
        return figure
    x = d["simulated_energies"][simulated] - mean[d["simulated_windows"][simulated]]
    y = d["generated_energies"][generated] - mean[d["generated_windows"][generated]]
    weights = np.zeros(len(y))
    windows = d["generated_windows"][generated]
    log_weights = d["generated_log_weights"][generated]
    for window in np.unique(windows):
        rows = windows == window
        w = np.exp(log_weights[rows] - log_weights[rows].max())
        weights[rows] = w / w.sum() * rows.sum()
    low_end, high_end = np.quantile(np.concatenate([x, y]), [0.001, 0.98])
    bins = np.linspace(low_end, high_end, 60).tolist()
    for values, w, colour, label in (
        (x, None, SIMULATED, "simulated"),
        (y, None, GENERATED, "generated, as drawn"),
        (y, weights, REWEIGHTED, "generated, reweighted"),
    ):
        axes.hist(values, bins, weights=w, density=True, histtype="step", linewidth=1.6, color=colour, label=label)
    axes.set(xlabel="potential energy − window mean (kJ/mol)", ylabel="density (mol/kJ)")
    axes.legend(frameon=False)
    return figure


def _consistency(run: _Run) -> Figure:
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


def _overlap(run: _Run) -> Figure:
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


def _history(run: _Run) -> Figure:
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


def _training(run: _Run) -> Figure:
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    trainings = run.result["trainings"]
    for k, training in enumerate(trainings):
        steps, losses = zip(*training["held_out"], strict=True)
        shade = matplotlib.colormaps["viridis"](k / max(1, len(trainings)))
        axes.plot(steps, losses, "o-", markersize=3, color=shade, label=f"{training['frames']:,} frames")
    axes.set(xlabel="step", ylabel="held-out loss", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return figure


# small things


def _below(run: _Run, values: np.ndarray, height: float) -> np.ndarray:
    if not np.isfinite(values).any():
        return np.zeros(len(values), dtype=bool)
    return values - np.nanmin(values) < height


def _contour_step(run: _Run) -> float:
    return 5.0 if np.nanmax(run.data["surface"]) > 10 else 1.0


def _degree_ticks(run: _Run, axes: Axes, first: int, second: int) -> None:
    for k, axis in ((first, axes.xaxis), (second, axes.yaxis)):
        if run.cvs[k]["period"] is not None and run.cvs[k]["unit"] == "rad":
            axis.set_ticks([-180, -90, 0, 90, 180])


def _places(run: _Run, which: np.ndarray) -> str:
    """Return window centres in words."""
    texts = []
    for center in run.data["centers"][which]:
        values = [value * run.scale(k) for k, value in enumerate(center)]
        texts.append("(" + ", ".join(f"{run.axis(k)} {value:.3g}" for k, value in enumerate(values)) + ")")
    return _join(texts)


def _join(texts: Sequence[str], most: int = 6) -> str:
    more = "" if len(texts) <= most else f" and {len(texts) - most} more"
    return "; ".join(texts[:most]) + more


def _e(text: Any) -> str:
    return html.escape(str(text))


def _number(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _pair(values: dict[str, float]) -> str:
    return f"{_number(values['median'])} ({_number(values['p05'])})"


def _seconds(wall: dict[str, float]) -> str:
    return ", ".join(f"{wall[name]:.0f}" for name in ("simulate", "train", "generate"))


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for row in rows:
        cells = (f"<td{' class=number' if k == len(row) - 1 else ''}>{_e(cell)}</td>" for k, cell in enumerate(row))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "<table>" + "".join(lines) + "</table>"


def _figure(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{_e(caption)}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{_e(caption)}</figcaption></figure>"
    )
