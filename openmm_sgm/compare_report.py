"""What a comparison says: a Markdown table for a README, plots of error against cost, and compare.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from .compare import Comparison
from .files import replacing, write_atomically
from .pages import drawing, figure, heading, listing, page, paragraph, table
from .rivals import METHODS

__all__ = ["TARGET_KJ_MOL", "Summary", "comparison_section", "cost_to_reach", "write_comparison"]

TARGET_KJ_MOL = 0.6
LEAST_COVERAGE = 0.9
"""A surface that covers less of the bins is no answer to the question, however good it is where it is."""
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00", "#999999", "#d55e00", "#000000")  # Okabe & Ito
_MARKERS = "osD^vPX*"
_STYLE_OF = dict(zip(METHODS, zip(_COLOURS, _MARKERS, strict=True), strict=True))


class Summary:
    """Medians and ranges over seeds, per method and budget.

    Attributes
    ----------
    budgets : those that have rows; methods : those that have rows, in the table's order
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.budgets: list[int] = sorted({row["budget"] for row in comparison.rows})
        present = {row["method"] for row in comparison.rows}
        self.methods = [name for name in METHODS if name in present]

    def values(self, method: str, budget: int, key: str) -> np.ndarray:
        """Return a column of the rows of one method and budget; NaN where unknown."""
        rows = [row for row in self.comparison.rows if (row["method"], row["budget"]) == (method, budget)]
        return np.array([np.nan if row[key] is None else row[key] for row in rows], dtype=float)

    def median(self, method: str, budget: int, key: str) -> float:
        values = self.values(method, budget, key)
        return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")

    def complete(self, method: str, budget: int) -> bool:
        """Return whether the median surface covers enough of the bins to be compared."""
        return self.median(method, budget, "coverage") >= LEAST_COVERAGE

    def reach(self, method: str, cost: str, target: float = TARGET_KJ_MOL) -> tuple[float, bool]:
        """Return `cost_to_reach` over the medians of the budgets whose surfaces are complete."""
        budgets = [b for b in self.budgets if self.complete(method, b)]
        errors = [self.median(method, b, "rmse_kj_mol") for b in budgets]
        return cost_to_reach([self.median(method, b, cost) for b in budgets], errors, target)

    def best(self, budget: int) -> str | None:
        """Return the method with the smallest median error among those with complete surfaces."""
        errors = {m: self.median(m, budget, "rmse_kj_mol") for m in self.methods if self.complete(m, budget)}
        errors = {m: e for m, e in errors.items() if np.isfinite(e)}
        return min(errors, key=lambda m: errors[m]) if errors else None


def cost_to_reach(costs: Sequence[float], errors: Sequence[float], target: float) -> tuple[float, bool]:
    """Return the first cost at which the error is at most `target`, and whether that is only an upper bound.

    Between two points log error is linear in log cost. Where the first point meets the target already, its cost is an
    upper bound. NaN where no point does.
    """
    known = [(c, e) for c, e in zip(costs, errors, strict=True) if np.isfinite(e)]
    for k, (cost, error) in enumerate(known):
        if error <= target:
            if k == 0:
                return cost, True
            before, worse = known[k - 1]
            share = np.log(worse / target) / np.log(worse / max(error, 1e-12))
            return float(np.exp(np.log(before) + share * np.log(cost / before))), False
    return float("nan"), False


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Write compare.md, two PNG plots and compare.html into the folder; return the page's path."""
    summary = Summary(comparison)
    write_atomically(folder / "compare.md", _markdown(summary))
    sections = [heading(f"{comparison.about['system']}: methods compared", 1)]
    with drawing():
        for cost, (picture, caption) in _pictures(summary).items():
            with replacing(folder / f"error_{cost}.png") as partial:
                picture.savefig(partial, format="png", dpi=150)
            sections.append(figure(picture, caption))
    sections += [heading("Error and cost"), *_page_tables(summary), *_page_notes(summary)]
    path = folder / "compare.html"
    write_atomically(path, page(f"{comparison.about['system']}: methods compared", sections))
    return path


def comparison_section(comparison: Comparison) -> list[str]:
    """Return a section for the report of a run of the same system: table, reference, verdicts and plots, as HTML."""
    summary = Summary(comparison)
    with drawing():
        figures = [figure(picture, caption) for picture, caption in _pictures(summary).values()]
    return [
        heading("Methods compared"),
        *figures,
        table(_table_rows(summary), _head(summary)),
        *(paragraph(sentence) for sentence in [*_notes(summary), *_verdicts(summary), *_failures(summary)]),
    ]


# in words


def _cell(summary: Summary, method: str, budget: int) -> str:
    errors = summary.values(method, budget, "rmse_kj_mol")
    if not len(errors):
        return "–"
    coverage = summary.median(method, budget, "coverage")
    cost = f"{coverage:.0%}, {summary.median(method, budget, 'seconds'):.0f} s"
    if not np.isfinite(errors).any():
        return f"none; {cost}"
    spread = f" ({np.nanmin(errors):.2f}–{np.nanmax(errors):.2f})" if len(errors) > 1 else ""
    return f"{np.nanmedian(errors):.2f}{spread}; {cost}"


def _reach_cell(summary: Summary, method: str, cost: str) -> str:
    value, bound = summary.reach(method, cost)
    if not np.isfinite(value):
        return "not reached"
    text = f"{_thousands(value)}" if cost == "force_evaluations" else f"{value:.0f} s"
    return f"≤ {text}" if bound else text


def _thousands(value: float) -> str:
    return f"{value / 1e6:.2g}M" if value >= 999_500 else f"{value / 1000:.0f}k" if value >= 1000 else f"{value:.0f}"


def _head(summary: Summary) -> list[str]:
    return ["method", *(_thousands(b) for b in summary.budgets), f"{TARGET_KJ_MOL:g} kJ/mol at", "in"]


def _table_rows(summary: Summary) -> list[list[str]]:
    return [
        [
            method,
            *(_cell(summary, method, budget) for budget in summary.budgets),
            _reach_cell(summary, method, "force_evaluations"),
            _reach_cell(summary, method, "seconds"),
        ]
        for method in summary.methods
    ]


def _verdicts(summary: Summary) -> list[str]:
    """Return who is best at each budget, and where a rival beats ours, in sentences."""
    sentences = []
    for budget in summary.budgets:
        best = summary.best(budget)
        if best is None:
            sentences.append(f"At {_thousands(budget)} no method covers {LEAST_COVERAGE:.0%} of the bins.")
            continue
        if summary.comparison.about.get("reference_methods") == [best]:
            sentences.append(f"At {_thousands(budget)} there is no verdict: the reference is made of {best} alone.")
            continue
        error = summary.median(best, budget, "rmse_kj_mol")
        sentence = f"At {_thousands(budget)} {best} has the smallest median error, {error:.2f} kJ/mol"
        if best != "score" and "score" in summary.methods:
            ours = summary.median("score", budget, "rmse_kj_mol")
            incomplete = "" if summary.complete("score", budget) else ", on fewer bins than asked for"
            sentence += f"; score has {ours:.2f}{incomplete}" if np.isfinite(ours) else "; score has no surface"
        sentences.append(sentence + ".")
    for cost, what in (("force_evaluations", "force evaluations"), ("seconds", "seconds")):
        reached = {m: summary.reach(m, cost)[0] for m in summary.methods}
        reached = {m: value for m, value in reached.items() if np.isfinite(value)}
        if reached:
            first = min(reached, key=lambda m: reached[m])
            count = _reach_cell(summary, first, cost)
            sentences.append(f"In {what}, {first} is the first at {TARGET_KJ_MOL:g} kJ/mol ({count}).")
        else:
            sentences.append(f"No method reaches {TARGET_KJ_MOL:g} kJ/mol.")
            break
    return sentences


def _notes(summary: Summary) -> list[str]:
    about = summary.comparison.about
    seeds = "one seed" if about["seeds"] == 1 else f"{about['seeds']} seeds"
    return [
        f"Median over {seeds} of the RMS error (smallest–largest) in kJ/mol; share of the bins covered; "
        f"seconds. Bins whose reference lies below {about['limit_kj_mol']:g} kJ/mol count, both surfaces "
        "aligned by their mean there.",
        f"Reference: {about['reference']}.",
        f"Workers: {about['workers']}; runs one after the other. A rival's budgets are stations of one run, ours are "
        f"runs of their own. A budget whose surface covers less than {LEAST_COVERAGE:.0%} of the bins wins nothing.",
    ]


def _failures(summary: Summary) -> list[str]:
    return [f"{name}, {text}." for name, texts in summary.comparison.failures.items() for text in texts]


def _markdown(summary: Summary) -> str:
    head = _head(summary)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in _table_rows(summary)]
    for part in (_verdicts(summary), _notes(summary), _failures(summary)):
        lines += ["", *(f"- {sentence}" for sentence in part)] if part else []
    return "\n".join(lines) + "\n"


def _page_tables(summary: Summary) -> list[str]:
    bars = []
    for method in summary.methods:
        cells = [
            _bars(summary.median(method, budget, "error_bar_ratio"), summary.median(method, budget, "within_two_se"))
            for budget in summary.budgets
        ]
        bars.append([method, *cells])
    return [
        table(_table_rows(summary), _head(summary)),
        *(paragraph(sentence) for sentence in _notes(summary)),
        heading("Who wins where"),
        listing(_verdicts(summary)),
        heading("Error bars"),
        paragraph(
            "True error over reported error, RMS (1 is right, above 1 the bars are too small), and the share of bins "
            "within two standard errors (0.95 is right). Empty for methods without an accepted error bar."
        ),
        table(bars, ["method", *(_thousands(b) for b in summary.budgets)]),
    ]


def _bars(ratio: float, within: float) -> str:
    return f"{ratio:.2f}; {within:.2f}" if np.isfinite(ratio) else ""


def _page_notes(summary: Summary) -> list[str]:
    about: dict[str, Any] = summary.comparison.about
    sections = [heading("Settings"), table([[name, text] for name, text in about["settings"].items()])]
    noted = sorted({(r["method"], r["budget"], r["note"]) for r in summary.comparison.rows if r["note"]})
    told = _failures(summary) + [f"{m} at {_thousands(b)}: {note}." for m, b, note in noted]
    if told:
        sections += [heading("What went wrong, or was left out"), listing(told)]
    sections.append(heading("How it was made"))
    if about["command"]:
        sections.append(paragraph("", about["command"]))
    return [*sections, table([[name, version] for name, version in about["versions"].items()])]


# in pictures


def _pictures(summary: Summary) -> dict[str, tuple[Figure, str]]:
    """Return the plots of error against each cost, with their captions."""
    costs = {
        "force_evaluations": ("force evaluations", "force evaluations"),
        "seconds": ("wall time (s)", "seconds, training and generation included"),
    }
    return {
        cost: (
            _draw(summary, cost, label),
            f"Error of the surface against {against}: median over seeds, and the range from the smallest to the "
            f"largest. Hollow markers: less than {LEAST_COVERAGE:.0%} of the bins are covered. Dashed: "
            f"{TARGET_KJ_MOL:g} kJ/mol.",
        )
        for cost, (label, against) in costs.items()
    }


def _draw(summary: Summary, cost: str, label: str) -> Figure:
    picture = Figure(figsize=(8, 5), layout="constrained")
    axes = picture.subplots()
    for method in summary.methods:
        colour, marker = _STYLE_OF[method]
        points = []
        for budget in summary.budgets:
            errors = summary.values(method, budget, "rmse_kj_mol")
            if np.isfinite(errors).any():
                spent = summary.median(method, budget, cost)
                low, high = np.nanmin(errors), np.nanmax(errors)
                points.append((spent, np.nanmedian(errors), low, high, summary.complete(method, budget)))
        if not points:
            continue
        x, median, low, high, complete = (np.array(column) for column in zip(*points, strict=True))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        wide = 2.4 if method == "score" else 1.3
        axes.plot(x, median, color=colour, linewidth=wide, marker=marker, markersize=6, label=method)
        axes.plot(x[~complete], median[~complete], linestyle="", color=colour, marker=marker, markerfacecolor="white")
    axes.axhline(TARGET_KJ_MOL, color="0.5", linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="RMS error of the surface (kJ/mol)")
    _plain_ticks(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return picture


def _plain_ticks(axes: Axes) -> None:
    """Write 0.5, 1 and 2 on the error axis instead of powers of ten."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
