"""How far a free-energy surface is from a reference, and what may stand as one."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files import open_table
from .free_energy import Surface
from .system import MolecularSystem
from .umbrella import surface_bins
from .units import InputError, one_line

__all__ = ["LIMIT_KJ_MOL", "SurfaceError", "load_reference", "mean_reference", "surface_error"]

LIMIT_KJ_MOL = 20.92
"""5 kcal/mol: bins whose reference lies below it count."""
CENTER_TOLERANCE = 0.01
REFERENCE_COVERAGE = 0.95


@dataclass(frozen=True)
class SurfaceError:
    """How far a surface is from a reference, over the bins whose reference lies below a limit; NaN where unknown.

    Attributes
    ----------
    rmse_kj_mol : the two aligned by their mean difference over the bins that both have
    coverage : share of the reference's bins below the limit that the surface has
    error_bar_ratio : RMS of the true error over RMS of the reported one, over bins with an error bar
    within_two_se : share of the bins with an error bar whose true error is below twice that
    """

    rmse_kj_mol: float
    coverage: float
    error_bar_ratio: float
    within_two_se: float


def surface_error(surface: Surface, reference: np.ndarray, limit: float = LIMIT_KJ_MOL) -> SurfaceError:
    """Compare a surface with a reference on the same bins (kJ/mol, NaN where unknown); see `SurfaceError`.

    The reference's own error is left out: below it the numbers say nothing.
    """
    if reference.shape != surface.free_energy.shape:
        raise ValueError(f"the reference has {reference.shape} bins and the surface {surface.free_energy.shape}")
    wanted = reference - np.nanmin(reference) < limit
    both = wanted & np.isfinite(surface.free_energy)
    if not both.any():
        return SurfaceError(float("nan"), 0.0, float("nan"), float("nan"))
    difference = (surface.free_energy - reference)[both]
    difference -= difference.mean()
    bars = surface.std_error[both]
    known = np.isfinite(bars) & (bars > 0)
    ratio = within = float("nan")
    if known.any():
        ratio = float(np.sqrt(np.mean(difference[known] ** 2) / np.mean(bars[known] ** 2)))
        within = float(np.mean(np.abs(difference[known]) < 2 * bars[known]))
    return SurfaceError(float(np.sqrt(np.mean(difference**2))), float(both.sum() / wanted.sum()), ratio, within)


def load_reference(path: Path, molecule: MolecularSystem) -> np.ndarray:
    """Return the free energies of a file like surface.csv, in the bins of the system, NaN where it has none.

    Raises
    ------
    InputError
        for a file that cannot be read, or whose bin centres are not the system's.
    """
    edges, names, _ = surface_bins(molecule)
    centers = [0.5 * (edge[1:] + edge[:-1]) for edge in edges]
    values = np.full(molecule.bins, np.nan)
    try:
        with open_table(path) as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            point = [float(row[name]) for name in names]
            index = tuple(int(np.abs(axis - x).argmin()) for axis, x in zip(centers, point, strict=True))
            if any(abs(axis[k] - x) > CENTER_TOLERANCE for axis, k, x in zip(centers, index, point, strict=True)):
                where = ", ".join(f"{name} = {x:g}" for name, x in zip(names, point, strict=True))
                raise InputError(f"the reference {path} has a bin at {where}, where the system has none")
            text = row["free_energy_kj_mol"].strip()
            values[index] = float(text) if text else np.nan
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"the reference {path} cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise InputError(f"the reference {path} has no column {error}") from None
    except (ValueError, AttributeError, TypeError, csv.Error) as error:
        raise InputError(f"the reference {path} cannot be read: {one_line(error)}") from None
    if not np.isfinite(values).any():
        raise InputError(f"the reference {path} holds no free energy")
    return values


def mean_reference(surfaces: dict[str, list[np.ndarray]]) -> tuple[np.ndarray, list[str]]:
    """Return the mean of methods' surfaces, and which methods it is made of.

    Each method counts once, by the mean over its seeds. Methods that cover less than 0.95 of the bins that the widest
    one has below the limit are left out: a surface of one basin is no reference. Surfaces are aligned by their mean
    difference, over the bins below the limit that they share with the first.

    Parameters
    ----------
    surfaces : method -> free energies of its seeds, kJ/mol, NaN where unsampled
    """
    means: dict[str, np.ndarray] = {}
    for method, members in surfaces.items():
        if members:
            means[method] = _mean_aligned(members)
    counts = {method: int((mean - np.nanmin(mean) < LIMIT_KJ_MOL).sum()) for method, mean in means.items()}
    chosen = [method for method in means if counts[method] >= REFERENCE_COVERAGE * max(counts.values())]
    mean = _mean_aligned([means[method] for method in chosen])
    return mean - np.nanmin(mean), chosen


def _mean_aligned(surfaces: Sequence[np.ndarray]) -> np.ndarray:
    first = surfaces[0]
    aligned = []
    for surface in surfaces:
        low = (first - np.nanmin(first) < LIMIT_KJ_MOL) & np.isfinite(surface)
        aligned.append(surface - (surface - first)[low].mean() if low.any() else surface)
    stack = np.array(aligned)
    known = np.isfinite(stack).sum(axis=0)
    total = np.nansum(stack, axis=0)
    return np.where(known > 0, total / np.maximum(known, 1), np.nan)
