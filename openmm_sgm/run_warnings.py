"""What a reader of a run's results must know first, in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from .doubts import LEAST_TRUSTED_ACCEPTANCE, listed
from .figures import RunData, below
from .files import DAMAGE
from .hidden import BASINS
from .units import InputError, one_line

__all__ = ["find_warnings", "number", "readable", "warnings_of"]

LEAST_ACCEPTANCE = 0.2
MOST_DENSITY_ERROR_KT = 0.05
MOST_INCONSISTENT_KJ_MOL = 1.0
MOST_ENERGY_ERRORS = 4.0
MOST_PLACES, MOST_RANGES = 4, 2
"""Windows that are named one by one, and ranges of adjoining ones where there are more."""
EVERYWHERE = 0.7
"""Adjoining windows over this share of every CV are all over the surface."""
DOUBT = "is not to be trusted"
CARE = "lies there: take its height with care"


def find_warnings(folder: Path) -> list[str]:
    """Return what a reader of a finished run's results must know first, a sentence each.

    Raises
    ------
    InputError
        as `write_report`.
    """
    with readable(folder):
        return warnings_of(RunData(folder))


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no finished run: {Path(error.filename).name} is missing") from None
    except DAMAGE as error:
        raise InputError(f"the results in {folder} are damaged: {type(error).__name__} {one_line(error)}") from None


def warnings_of(run: RunData) -> list[str]:
    """Return what a reader must know before the numbers, in words."""
    result, found = run.result, []
    error = result["density_error_kt"]
    if error is None or error > MOST_DENSITY_ERROR_KT:
        found.append(f"The step error of the log density, {number(error)} kT, is above {MOST_DENSITY_ERROR_KT} kT.")
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
    median = result["acceptance"]["median"]
    if median is not None and median < LEAST_TRUSTED_ACCEPTANCE:
        found.append(
            f"The generator cannot be trusted for this molecule at this budget: {median:.0%} of its configurations "
            "were accepted, so that windows hold a few copies of what they began with, and errors are too small. More "
            "force evaluations, a generator trained on frames (--generator), or fewer or other CVs may help."
        )
    elif poor.any():
        found.append(
            f"At {_places(run, poor)} fewer than {LEAST_ACCEPTANCE:.0%} of the generated configurations were accepted: "
            "these windows rest more on their own dynamics. More force evaluations may help."
            + _barriers_at(run, poor, CARE)
        )
    apart = low & np.isnan(run.data["macro"])
    if apart.any():
        found.append(
            f"The simulations at {_places(run, apart)} do not overlap with the others, or have hardly moved: MBAR has "
            "no free energy for them, and only the generator's stands. More force evaluations may help."
            + _barriers_at(run, apart, CARE)
        )
    unknown = np.isnan(run.data["micro"]) & np.isfinite(run.data["acceptance"])
    if unknown.any():
        found.append(
            f"At {_places(run, unknown)} the weights of the generated configurations cannot be trusted (too few count, "
            "or a few count for too much) and are not used: the surface rests on the simulations and the accepted "
            "configurations there. More force evaluations may help." + _barriers_at(run, unknown, CARE)
        )
    off = low & (np.abs(run.data["difference"]) > MOST_INCONSISTENT_KJ_MOL)
    off &= np.abs(run.data["difference"]) > 3 * np.hypot(run.data["micro_error"], run.data["macro_error"])
    if off.any():
        found.append(
            f"Generator and MBAR disagree at {_places(run, off)} by more than {MOST_INCONSISTENT_KJ_MOL:g} kJ/mol and "
            "three standard errors: there may be a state that one of them has not visited."
            + _barriers_at(run, off, DOUBT)
        )
    hidden = result.get("hidden_states", [])
    mistrusted = median is not None and median < LEAST_TRUSTED_ACCEPTANCE
    if hidden and (not mistrusted or any(BASINS in text for text in hidden)):
        apart_in = [text for text in hidden if BASINS in text]
        if apart_in:
            text = f"Overlapping windows hold different states: {listed(apart_in, 3)}"
            todo = "make the torsion that is named a CV, or use a temperature ladder (--ladder)"
        else:
            text = f"Overlapping windows differ where they should agree: {listed(hidden, 3)}"
            todo = "more force evaluations may be enough; if not, something that is slow is in no CV"
        found.append(f"{text}. The surface is not to be trusted there: {todo}." + _doubtful_barriers(run))
    confined = result.get("confined_torsions", [])
    if confined:
        found.append(
            f"In all windows {listed(confined)} stayed in one place. If there is another, such as another rotamer of a "
            "side chain, no window has visited it, and no error covers it: make such a torsion a CV, or use a "
            "temperature ladder (--ladder)."
        )
    energy = result["simulated_minus_generated_kj_mol"]
    if energy["mean"] is not None and abs(energy["mean"]) > MOST_ENERGY_ERRORS * energy["std_error"]:
        found.append(
            f"Simulated and reweighted generated configurations differ in their mean energy by {energy['mean']:.2f} ± "
            f"{energy['std_error']:.2f} kJ/mol: the density is wrong, or the simulation does not sample its ensemble."
        )
    unreached = result["windows"]["left_by_the_budget"]
    if unreached:
        found.append(
            f"The budget ended before {listed(unreached)} could be visited: --resume with more --force-evaluations "
            "goes on there."
        )
    return found


def _places(run: RunData, which: np.ndarray) -> str:
    """Return windows in words: their centres, or the ranges of adjoining ones where they are many."""
    centers = run.data["centers"]
    if which.sum() <= MOST_PLACES:
        return listed([_place(run, [[value] for value in center]) for center in centers[which]])
    axes = [np.unique(column) for column in centers.T]
    index = np.stack(
        [np.searchsorted(axis, column) for axis, column in zip(axes, centers[which].T, strict=True)], axis=1
    )
    sizes = [len(axis) for axis in axes]
    periodic = [cv["period"] is not None for cv in run.cvs]
    tree = KDTree(index, boxsize=np.where(periodic, sizes, 0))
    _, group = connected_components(tree.sparse_distance_matrix(tree, 1.5))
    count, total = np.bincount(group), int(which.sum())
    where = []
    for k in np.argsort(-count, kind="stable")[:MOST_RANGES]:
        own = index[group == k].T
        if all(len(np.unique(column)) > EVERYWHERE * size for column, size in zip(own, sizes, strict=True)):
            where.append((count[k], "all over the surface"))
        elif count[k] > 1:
            ends = [_stretch(column, p, size) for column, p, size in zip(own, periodic, sizes, strict=True)]
            where.append((count[k], f"within {_place(run, [axis[end] for axis, end in zip(axes, ends, strict=True)])}"))
    if where and where[0][0] == total:
        return f"{total} adjoining windows {where[0][1]}"
    ranges = "; ".join(f"{n} of them adjoining, {place}" for n, place in where)
    return f"{total} windows" + (f" ({ranges})" if ranges else "")


def _stretch(index: np.ndarray, periodic: bool, size: int) -> list[int]:
    """Return the first and last of whole numbers, or the one that there is; of periodic ones, round the largest gap."""
    held = np.unique(index)
    if periodic and 1 < len(held) < size:
        gaps = np.diff(held, append=held[0] + size)
        held = np.roll(held, -int(gaps.argmax()) - 1)
    return [int(held[0])] if len(held) == 1 else [int(held[0]), int(held[-1])]


def _place(run: RunData, ranges: Sequence[Sequence[float] | np.ndarray]) -> str:
    """Return one value or two of every CV in words."""
    texts = []
    for k, values in enumerate(ranges):
        over = f" (over {run.value(k, run.data[f'edges_{k}'][-1])})" if values[0] > values[-1] else ""
        texts.append(f"{run.cvs[k]['name']} {' to '.join(run.value(k, value) for value in values)}{over}")
    return ", ".join(texts)


def _barriers_at(run: RunData, which: np.ndarray, judgement: str) -> str:
    """Return a sentence that names the barriers whose lowest paths lead, in their upper half, over these windows."""
    flanks = run.data.get("barrier_bins", np.zeros((0, 2), dtype=int))
    if not len(flanks) or not which.any():
        return ""
    shape, centers = run.data["surface"].shape, run.data["centers"]
    places = np.unravel_index(flanks[:, 1], shape)
    near = np.ones((len(flanks), int(which.sum())), dtype=bool)
    for k, cv in enumerate(run.cvs):
        edges, axis = run.data[f"edges_{k}"], np.unique(centers[:, k])
        middle = 0.5 * (edges[1:] + edges[:-1])[places[k]]
        apart = np.abs(middle[:, None] - centers[which][:, k])
        if cv["period"] is not None:
            apart = np.minimum(apart, cv["period"] - apart)
        half = 0.5 * (axis[1] - axis[0]) if len(axis) > 1 else np.inf
        near &= apart <= half * (1 + 1e-9)
    return _named(run, np.unique(flanks[near.any(axis=1), 0]), judgement)


def _doubtful_barriers(run: RunData) -> str:
    """Return a sentence that names the barriers that rest on windows which disagree with others."""
    flanks = run.data.get("barrier_bins", np.zeros((0, 2), dtype=int))
    if "untrusted" not in run.data or not len(flanks):
        return ""
    return _named(run, np.unique(flanks[run.data["untrusted"].ravel()[flanks[:, 1]], 0]), DOUBT)


def _named(run: RunData, barriers: np.ndarray, judgement: str) -> str:
    pairs = [" and ".join(run.result["barriers"][k]["between"]) for k in barriers]
    if not pairs:
        return ""
    return "".join(f" The barrier between {pair} {judgement}." for pair in pairs)


def number(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
