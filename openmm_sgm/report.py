"""`report.html`: one file that opens from disk without a network, made from what the run's folder holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .compare import read_comparison
from .compare_report import comparison_section
from .figures import (
    RunData,
    contour_step,
    draw_consistency,
    draw_energies,
    draw_history,
    draw_labels,
    draw_overlap,
    draw_surface,
    draw_training,
)
from .files import write_atomically
from .folders import RUN, refuse_strangers
from .geometry_figures import draw_bonds_and_angles, draw_torsions, geometry_in_words
from .methods import methods
from .pages import asset, details, drawing, heading, listing, page, paragraph
from .pages import figure as _figure
from .pages import table as _table
from .run_warnings import find_warnings, number, readable, warnings_of
from .units import InputError
from .viewer import interactive_surface, scripts

__all__ = ["find_warnings", "write_report"]

ADVICE = "What each means and what to do: docs/troubleshooting.md and docs/diagnostics.md of openmm_sgm."


def write_report(folder: Path, comparison: Path | None = None) -> Path:
    """Write `report.html` into a finished run's folder and return its path.

    Parameters
    ----------
    comparison : folder of a finished comparison of methods on the same system, for a section of its own

    Raises
    ------
    InputError
        where the folder holds no finished run or the other no comparison, their files cannot be read, or the two are
        of different systems.
    """
    path = folder / "report.html"
    refuse_strangers(folder, RUN)
    with readable(folder), drawing():
        run = RunData(folder)
        page = _page(run, [] if comparison is None else _compared(comparison, run.result["system"]))
    write_atomically(path, page)
    return path


def _page(run: RunData, comparison: list[str]) -> str:
    result = run.result
    cost, wall = result["force_evaluations"], result["wall_seconds"]
    surface, asked = run.data["surface"], np.isfinite(run.data["acceptance"])
    sections = [
        heading(f"{result['system']}: free-energy surface", 1),
        paragraph(
            f"{cost['total']:,} force evaluations in {wall['total']:.0f} s on the {result['platform']} platform. "
            f"{np.isfinite(surface).mean():.0%} of the bins are sampled. The others are left empty: they lie beyond "
            "the windows that were opened, see Windows."
        ),
        _warning_box(warnings_of(run)),
        *interactive_surface(run),
        _figure(
            draw_surface(run),
            f"Free energy and the standard error of its difference from the mean below {run.height:g} kJ/mol. Contours "
            f"every {contour_step(run):g} kJ/mol.",
        ),
        *_basins(run),
        heading("The run in numbers"),
        _table(_summary(run)),
        heading("The generator"),
        _figure(
            draw_labels(run),
            f"Metropolis acceptance and effective sample size of the generated configurations, in the last round, for "
            f"each of the {int(asked.sum())} labels (umbrella windows) for which some were drawn.",
        ),
        _figure(
            draw_energies(run),
            f"Potential energy in the windows below {run.height:g} kJ/mol, each minus its window's mean over "
            "reweighted generated configurations. Reweighted, these must agree with simulated ones.",
        ),
        *_geometry(run),
        heading("What became of the generated configurations"),
        _table([[purpose, verdict, f"{n:,}"] for (purpose, verdict), n in run.verdicts.most_common()]),
        paragraph(
            "“not offered” are trials, drawn to see whether the generator can be trusted in a new window. The "
            "generator proposes only what its coordinates reach: it makes no state that no simulation has visited "
            "(such as a cis peptide bond), and never the other handedness of a chiral centre."
        ),
        heading("Micro-macro consistency"),
        _figure(
            draw_consistency(run),
            f"Each window's free energy from the generator's own density, and from MBAR over the windows' simulations. "
            f"Below {run.height:g} kJ/mol they differ by {number(result['micro_macro_rmse_kj_mol'])} kJ/mol RMS.",
        ),
        heading("Window overlap"),
        _figure(
            draw_overlap(run),
            "MBAR's overlap matrix of the simulated windows, and the largest overlap of each with another. Windows "
            "below the dashed line (0.03) are joined to the others by too few samples.",
        ),
        heading("Cost and coverage"),
        _figure(draw_history(run), "After the exploration and after each round."),
        _figure(draw_training(run), "Loss on held-out frames during each training."),
        heading("Windows"),
        _windows(run),
        *comparison,
        heading("How it was made"),
        methods(run),
        paragraph("To compute it again:", result["command"]),
        _table([[name, version] for name, version in result["versions"].items()]),
    ]
    return page(f"{result['system']}: free-energy surface", sections, [*scripts(run), asset("copy.js")])


def _compared(folder: Path, system: str) -> list[str]:
    comparison = read_comparison(folder)
    with readable(folder):
        if comparison.about["system"] != system:
            raise InputError(f"the comparison in {folder} is of {comparison.about['system']}, the run of {system}")
        return comparison_section(comparison)


def _warning_box(found: list[str]) -> str:
    if not found:
        return ""
    return f'<div class="warnings">{listing(found)}{paragraph(ADVICE)}</div>'


def _basins(run: RunData) -> list[str]:
    """Return the tables of the basins and of the barriers between them; nothing where the folder has none."""
    if not run.basins:
        return []
    rows = []
    for basin in run.basins:
        place = ", ".join(run.value(k, value) for k, value in enumerate(basin["minimum"].values()))
        population = _with_error(basin["population"], basin["std_error"], 100.0)
        free = _with_error(basin["free_energy_kj_mol"], basin["free_energy_std_error_kj_mol"])
        rows.append([basin["label"], place, population, "0" if basin is run.basins[0] else free])
    names = ", ".join(str(cv["name"]) for cv in run.cvs)
    sections = [
        heading("Basins"),
        _table(rows, ["basin", f"minimum ({names})", "population (%)", "free energy over A (kJ/mol)"]),
        paragraph(
            f"Basins have their minimum below {run.height:g} kJ/mol. Populations are of all bins that run down to the "
            "minimum, in the unbiased ensemble, ± the standard error by the bootstrap; a state that no window has "
            "visited is in none of them. Two minima are one basin where the barrier between them is lower than kT or "
            "than twice its standard error."
        ),
    ]
    barriers = [
        [
            " and ".join(barrier["between"]),
            ", ".join(run.value(k, value) for k, value in enumerate(barrier["at"].values())),
            _with_error(barrier["free_energy_kj_mol"], barrier["std_error_kj_mol"], digits=1),
        ]
        for barrier in run.result.get("barriers", [])
    ]
    if barriers:
        head = ["barrier between", f"highest bin of the lowest path ({names})", "free energy over the minimum (kJ/mol)"]
        sections.append(_table(barriers, head))
    return sections


def _with_error(value: float | None, error: float | None, scale: float = 1.0, digits: int = 2) -> str:
    if value is None:
        return "unknown"
    least = 10.0**-digits
    if error is not None and 0 < scale * error < least:  # two digits of the error
        digits = int(np.ceil(-np.log10(scale * error))) + 1
    return f"{number(scale * value, digits)} ± {number(None if error is None else scale * error, digits)}"


def _geometry(run: RunData) -> list[str]:
    """Return the comparison of bonds, angles and torsions; nothing where the folder has none."""
    if "geometry_bonds" not in run.data:
        return []
    sections = [
        heading("Bonds, angles and torsions"),
        _figure(
            draw_bonds_and_angles(run),
            "Mean and spread (standard deviation) of every bond and angle, generated minus simulated, over the windows "
            "that have both, each counting the same. " + geometry_in_words(run),
        ),
    ]
    if len(run.data["geometry_torsions"]):
        caption = (
            "Torsions that are collective variables, then others, over the same windows: densities. What was generated "
            "must agree with what was simulated once it is reweighted; as drawn it need not. A torsion with a single "
            "peak may have other states that no window has visited."
        )
        sections.append(_figure(draw_torsions(run), caption))
    return sections


def _summary(run: RunData) -> list[list[str]]:
    r = run.result
    cost, wall = r["force_evaluations"], r["wall_seconds"]
    return [
        ["force evaluations, simulation", f"{cost['simulation']:,}"],
        ["force evaluations, generated configurations", f"{cost['generation']:,}"],
        ["seconds: simulating, training, generating", _seconds(wall)],
        [f"standard error below {run.height:g} kJ/mol, RMS", f"{number(r['std_error_rms_kj_mol'])} kJ/mol"],
        ["acceptance over labels, median (5th percentile)", _pair(r["acceptance"])],
        ["effective sample size over labels, median (5th percentile)", _pair(r["ess"])],
        ["step error of the log density", f"{number(r['density_error_kt'], 3)} kT"],
        ["micro-macro consistency, RMS", f"{number(r['micro_macro_rmse_kj_mol'])} kJ/mol"],
        ["mean energy, simulated − generated, and its standard error", _energy(r["simulated_minus_generated_kj_mol"])],
        ["seed", str(r["seed"])],
    ]


def _windows(run: RunData) -> str:
    windows = run.result["windows"]
    started = "; ".join(f"{n} from {origin}" for origin, n in windows["started_from"].items())
    above = windows["above_the_explored_height"]
    text = paragraph(
        f"{windows['visited']} windows were visited; they started: {started}. Windows were opened beside those "
        f"below {run.about['heights_kj_mol']['explored']:g} kJ/mol first, then over the lowest ridges."
    )
    if above:
        text += details(f"{len(above)} windows beside them were left empty, as too high", "; ".join(above))
    return text


def _pair(values: dict[str, float]) -> str:
    return f"{number(values['median'])} ({number(values['p05'])})"


def _energy(difference: dict[str, float | None]) -> str:
    return f"{number(difference['mean'])} ± {number(difference['std_error'])} kJ/mol"


def _seconds(wall: dict[str, float]) -> str:
    return ", ".join(f"{wall[name]:.0f}" for name in ("simulate", "train", "generate"))
