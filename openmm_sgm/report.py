"""`report.html`: one file that opens from disk without a network, made from what the run's folder holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .compare import read_comparison
from .compare_report import comparison_section
from .figures import (
    RunData,
    below,
    contour_step,
    draw_consistency,
    draw_energies,
    draw_history,
    draw_labels,
    draw_overlap,
    draw_surface,
    draw_training,
)
from .pages import drawing, page
from .pages import escape as _e
from .pages import figure as _figure
from .pages import table as _table
from .runfolder import DAMAGE
from .units import InputError, one_line

__all__ = ["find_warnings", "write_report"]

LEAST_ACCEPTANCE = 0.2
MOST_DENSITY_ERROR_KT = 0.05
MOST_INCONSISTENT_KJ_MOL = 1.0
MOST_ENERGY_ERRORS = 4.0


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
    with _readable(folder), drawing():
        run = RunData(folder)
        page = _page(run, [] if comparison is None else _compared(comparison, run.result["system"]))
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def find_warnings(folder: Path) -> list[str]:
    """Return what a reader of a finished run's results must know first, a sentence each.

    Raises
    ------
    InputError
        as `write_report`.
    """
    with _readable(folder):
        return _warnings(RunData(folder))


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no finished run: {Path(error.filename).name} is missing") from None
    except DAMAGE as error:
        raise InputError(f"the results in {folder} are damaged: {type(error).__name__} {one_line(error)}") from None


def _page(run: RunData, comparison: list[str]) -> str:
    result = run.result
    cost, wall = result["force_evaluations"], result["wall_seconds"]
    surface, asked = run.data["surface"], np.isfinite(run.data["acceptance"])
    sections = [
        f"<h1>{_e(result['system'])}: free-energy surface</h1>",
        f"<p>{cost['total']:,} force evaluations in {wall['total']:.0f} s on the {_e(result['platform'])} platform. "
        f"{np.isfinite(surface).mean():.0%} of the bins are sampled; the others are left empty.</p>",
        _warning_box(_warnings(run)),
        _figure(
            draw_surface(run),
            f"Free energy and the standard error of its difference from the mean below {run.height:g} kJ/mol. Contours "
            f"every {contour_step(run):g} kJ/mol.",
        ),
        _table(_summary(run)),
        "<h2>The generator</h2>",
        _figure(
            draw_labels(run),
            f"Metropolis acceptance and effective sample size of the generated configurations, in the last round, for "
            f"each of {int(asked.sum())} labels (umbrella windows).",
        ),
        _figure(
            draw_energies(run),
            f"Potential energy in the windows below {run.height:g} kJ/mol, each minus its window's mean over "
            "reweighted generated configurations. Reweighted, these must agree with simulated ones.",
        ),
        "<h2>What became of the generated configurations</h2>",
        _table([[purpose, verdict, f"{n:,}"] for (purpose, verdict), n in run.verdicts.most_common()]),
        "<p>“not offered” are trials, drawn to see whether the generator can be trusted in a new window. The generator "
        "proposes only what its coordinates reach: it makes no state that no simulation has visited (such as a cis "
        "peptide bond), and never the other handedness of a chiral centre.</p>",
        "<h2>Micro-macro consistency</h2>",
        _figure(
            draw_consistency(run),
            f"Each window's free energy from the generator's own density, and from MBAR over the windows' simulations. "
            f"Below {run.height:g} kJ/mol they differ by {_number(result['micro_macro_rmse_kj_mol'])} kJ/mol RMS.",
        ),
        "<h2>Window overlap</h2>",
        _figure(
            draw_overlap(run),
            "MBAR's overlap matrix of the simulated windows, and the largest overlap of each with another. Windows "
            "below the dashed line (0.03) are joined to the others by too few samples.",
        ),
        "<h2>Cost and coverage</h2>",
        _figure(draw_history(run), "After the exploration and after each round."),
        _figure(draw_training(run), "Loss on held-out frames during each training."),
        "<h2>Windows</h2>",
        _windows(run),
        *comparison,
        "<h2>How it was made</h2>",
        _methods(run),
        f"<p><code>{_e(result['command'])}</code></p>",
        _table([[name, version] for name, version in result["versions"].items()]),
    ]
    return page(f"{result['system']}: free-energy surface", sections)


def _compared(folder: Path, system: str) -> list[str]:
    comparison = read_comparison(folder)
    with _readable(folder):
        if comparison.about["system"] != system:
            raise InputError(f"the comparison in {folder} is of {comparison.about['system']}, the run of {system}")
        return comparison_section(comparison)


def _warning_box(found: list[str]) -> str:
    if not found:
        return ""
    return '<div class="warnings"><ul>' + "".join(f"<li>{_e(text)}</li>" for text in found) + "</ul></div>"


def _warnings(run: RunData) -> list[str]:
    """Return what a reader must know before the numbers, in words."""
    result, found = run.result, []
    error = result["density_error_kt"]
    if error is None or error > MOST_DENSITY_ERROR_KT:
        found.append(f"The step error of the log density, {_number(error)} kT, is above {MOST_DENSITY_ERROR_KT} kT.")
    for window, reason in result["windows"]["set_aside"].items():
        found.append(f"The window at {window} was set aside: {reason}.")
    units = result["units"]
    if units["retried"]:
        found.append(
            f"Of {units['run']} units of work {units['retried']} failed and were done again, and {units['set_aside']} "
            "walkers or batches of draws failed twice and were set aside; these are in no estimate."
        )
    low = below(run, run.data["micro"], run.height)
    poor = low & (run.data["acceptance"] < LEAST_ACCEPTANCE)
    if poor.any():
        found.append(
            f"At {_places(run, poor)} fewer than {LEAST_ACCEPTANCE:.0%} of the generated configurations were accepted: "
            "the surface rests on few samples there."
        )
    apart = low & np.isnan(run.data["macro"])
    if apart.any():
        found.append(
            f"The simulations at {_places(run, apart)} do not overlap with the others, or have hardly moved: MBAR has "
            "no free energy for them, and only the generator's stands."
        )
    unknown = np.isnan(run.data["micro"]) & np.isfinite(run.data["acceptance"])
    if unknown.any():
        found.append(
            f"At {_places(run, unknown)} the weights of the generated configurations cannot be trusted (too few count, "
            "or a few count for too much): the surface rests on the simulations and the accepted configurations there."
        )
    off = low & (np.abs(run.data["difference"]) > MOST_INCONSISTENT_KJ_MOL)
    off &= np.abs(run.data["difference"]) > 3 * np.hypot(run.data["micro_error"], run.data["macro_error"])
    if off.any():
        found.append(
            f"Generator and MBAR disagree at {_places(run, off)} by more than {MOST_INCONSISTENT_KJ_MOL:g} kJ/mol and "
            "three standard errors: there may be a state that one of them has not visited."
        )
    hidden = result.get("hidden_states", [])
    if hidden:
        found.append(
            f"Overlapping windows hold different states: {_join(hidden, 3)}. The surface is not to be trusted there; "
            "another CV or a temperature ladder (--ladder) may be needed."
        )
    energy = result["simulated_minus_generated_kj_mol"]
    if energy["mean"] is not None and abs(energy["mean"]) > MOST_ENERGY_ERRORS * energy["std_error"]:
        found.append(
            f"Simulated and reweighted generated configurations differ in their mean energy by {energy['mean']:.2f} ± "
            f"{energy['std_error']:.2f} kJ/mol: the density is wrong, or the simulation does not sample its ensemble."
        )
    unreached = result["windows"]["left_by_the_budget"]
    if unreached:
        found.append(f"The budget ended before {_join(unreached)} could be visited.")
    return found


def _summary(run: RunData) -> list[list[str]]:
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
        ["mean energy, simulated − generated, and its standard error", _energy(r["simulated_minus_generated_kj_mol"])],
        ["seed", str(r["seed"])],
    ]


def _methods(run: RunData) -> str:
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


def _windows(run: RunData) -> str:
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


def _places(run: RunData, which: np.ndarray) -> str:
    """Return window centres in words."""
    texts = []
    for center in run.data["centers"][which]:
        texts.append(", ".join(f"{run.cvs[k]['name']} {run.value(k, value)}" for k, value in enumerate(center)))
    return _join(texts)


def _join(texts: Sequence[str], most: int = 6) -> str:
    more = "" if len(texts) <= most else f" and {len(texts) - most} more"
    return "; ".join(texts[:most]) + more


def _number(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def _pair(values: dict[str, float]) -> str:
    return f"{_number(values['median'])} ({_number(values['p05'])})"


def _energy(difference: dict[str, float | None]) -> str:
    return f"{_number(difference['mean'])} ± {_number(difference['std_error'])} kJ/mol"


def _seconds(wall: dict[str, float]) -> str:
    return ", ".join(f"{wall[name]:.0f}" for name in ("simulate", "train", "generate"))
