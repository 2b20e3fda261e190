"""Bonds, angles and torsions of generated configurations against simulated ones, and a structure for each bin."""

from __future__ import annotations

import mdtraj
import numpy as np

from .cvs import Torsion
from .frames import Frames, rows_by_window
from .free_energy import Estimate
from .system import MolecularSystem

__all__ = ["KINDS", "compare_geometry", "structures_of_bins", "superposed"]

KINDS = ("simulated", "generated, as drawn", "generated, reweighted")
MOST_FRAMES = 20_000
"""Frames of each kind that are compared; more are thinned evenly."""
TORSION_BINS = 72
MOST_TORSIONS = 6
"""Torsions shown besides those that are CVs."""
MOST_COORDINATES = 1_200_000
"""Numbers of two bytes that the structures of all bins may take; the lowest bins come first."""
PM_PER_NM = 1000.0


def compare_geometry(molecule: MolecularSystem, simulated: Frames, generated: Frames) -> dict[str, np.ndarray]:
    """Return means and spreads of all bonds and angles, and histograms of torsions, of three kinds of configurations.

    `KINDS`: simulated frames, generated configurations as they were drawn, and those reweighted to their windows'
    umbrella ensembles; over the windows that have both, each counting the same, so that the first and the last must
    agree. Torsions are those of the CVs and, one a bond, some of the others, between heavy atoms first.

    Returns
    -------
    geometry_bonds, geometry_angles, geometry_torsions : int64, shape (n, 2), (n, 3) and (n, 4), atoms
    geometry_torsion_names : shape (n,)
    geometry_{bond,angle}_{mean,spread} : float64, shape (3, n), nm or rad
    geometry_histograms : float64, shape (3, n, 72), densities per rad over [−π, π)

    Empty where the topology has no bonds or no window has both.
    """
    both = np.intersect1d(simulated.windows, generated.windows[np.isfinite(generated.log_weights)])
    if not len(molecule.bonds) or not len(both):
        return {}
    simulated, generated = _thinned(simulated, both), _thinned(generated, both)
    neighbours = _neighbours(molecule)
    angles = [(a, j, b) for j, ends in enumerate(neighbours) for a in ends for b in ends if a < b]
    torsions, names = _torsions(molecule, neighbours)
    internal = {
        "bonds": molecule.bonds,
        "angles": np.array(angles, dtype=np.int64).reshape(-1, 3),
        "torsions": np.array(torsions, dtype=np.int64).reshape(-1, 4),
    }
    result: dict[str, list[np.ndarray]] = {}
    for frames, log_weights in (
        (simulated, np.zeros(len(simulated))),
        (generated, np.zeros(len(generated))),
        (generated, generated.log_weights),
    ):
        weights = _weights(frames.windows, log_weights)
        lengths, bends, turns = _measured(molecule, frames, **internal)
        for name, values in (("bond", lengths), ("angle", bends)):
            mean = weights @ values
            result.setdefault(f"geometry_{name}_mean", []).append(mean)
            result.setdefault(f"geometry_{name}_spread", []).append(np.sqrt(weights @ (values - mean) ** 2))
        result.setdefault("geometry_histograms", []).append(_histograms(turns, weights))
    return {
        **{f"geometry_{name}": atoms for name, atoms in internal.items()},
        "geometry_torsion_names": np.array(names, dtype=np.str_),
        **{name: np.array(values) for name, values in result.items()},
    }


def _thinned(frames: Frames, windows: np.ndarray) -> Frames:
    rows = np.flatnonzero(np.isin(frames.windows, windows))
    return frames[rows[:: max(1, -(-len(rows) // MOST_FRAMES))]]


def _weights(windows: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Return weights that add up to one, and each window's to the same; 0 for a window without a weight."""
    weights = np.zeros(len(windows))
    for rows in rows_by_window(windows):
        top = log_weights[rows].max()
        if np.isfinite(top):
            own = np.exp(log_weights[rows] - top)
            weights[rows] = own / own.sum()
    return weights / weights.sum()


def _neighbours(molecule: MolecularSystem) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(molecule.n_atoms)]
    for a, b in molecule.bonds.tolist():
        found[a].append(b)
        found[b].append(a)
    return [sorted(ends) for ends in found]


def _torsions(molecule: MolecularSystem, neighbours: list[list[int]]) -> tuple[list[tuple[int, ...]], list[str]]:
    """Return atoms and names of the torsions to be shown."""
    cvs = [cv for cv in molecule.cvs if isinstance(cv, Torsion)]
    torsions, names = [tuple(cv.atoms) for cv in cvs], [cv.name for cv in cvs]
    taken = {frozenset(atoms[1:3]) for atoms in torsions}
    atoms = list(molecule.mdtraj_topology.atoms)
    others = []
    for i, j in molecule.bonds.tolist():
        ends = [[n for n in neighbours[x] if n != y] for x, y in ((i, j), (j, i))]
        if frozenset((i, j)) in taken or not all(ends):
            continue
        first, last = (max(end, key=lambda n: (molecule.masses[n], -n)) for end in ends)
        light = sum(molecule.masses[n] < 3 for n in (first, i, j, last))
        others.append((light, (first, i, j, last)))
    for _, quad in sorted(others)[:MOST_TORSIONS]:
        torsions.append(quad)
        bond = " ".join(f"{atoms[n].residue}-{atoms[n].name}" for n in quad[1:3])
        names.append(f"{bond} ({'–'.join(atoms[n].name for n in quad)})")
    return torsions, names


def _measured(
    molecule: MolecularSystem, frames: Frames, bonds: np.ndarray, angles: np.ndarray, torsions: np.ndarray
) -> list[np.ndarray]:
    """Return lengths (nm), angles and torsions (rad), float64, each of shape (n_frames, its number)."""
    trajectory = molecule.trajectory(frames.positions)
    functions = (mdtraj.compute_distances, mdtraj.compute_angles, mdtraj.compute_dihedrals)
    return [
        function(trajectory, atoms, periodic=False).astype(float) if len(atoms) else np.zeros((len(frames), 0))
        for function, atoms in zip(functions, (bonds, angles, torsions), strict=True)
    ]


def _histograms(turns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    edges = np.linspace(-np.pi, np.pi, TORSION_BINS + 1)
    wrapped = (turns + np.pi) % (2 * np.pi) - np.pi
    columns = [np.histogram(column, edges, weights=weights, density=True)[0] for column in wrapped.T]
    return np.array(columns).reshape(-1, TORSION_BINS)


def structures_of_bins(molecule: MolecularSystem, estimate: Estimate) -> dict[str, np.ndarray]:
    """Return the sample with the largest weight of every bin of the surface, turned onto the starting structure.

    Returns
    -------
    structures : int16, shape (m, n_atoms, 3), pm
    structure_bins : int64, shape (m,), flat index of each one's bin, ascending

    Empty for a system tied to a place, one of a single atom, and one too large for two bytes a coordinate. Where they
    would take more than `MOST_COORDINATES`, the highest bins have none.
    """
    nothing: dict[str, np.ndarray] = {}
    most = MOST_COORDINATES // (3 * molecule.n_atoms)
    if molecule.tied or molecule.n_atoms < 2 or not most:
        return nothing
    free_energy = estimate.surface.free_energy.ravel()
    bins = estimate.surface.bins_of(estimate.samples.column("cvs"))
    order = np.lexsort((-estimate.log_weights, bins))
    found, first = np.unique(bins[order], return_index=True)
    rows = order[first]
    shown = (found >= 0) & np.isfinite(free_energy[found])
    found, rows = found[shown], rows[shown]
    lowest = np.sort(np.argsort(free_energy[found], kind="stable")[:most])
    found, rows = found[lowest], rows[lowest]
    if not len(found):
        return nothing
    positions = np.rint(superposed(estimate.samples.take(rows).positions, molecule.positions) * PM_PER_NM)
    if np.abs(positions).max() > np.iinfo(np.int16).max:
        return nothing
    return {"structures": positions.astype(np.int16), "structure_bins": found}


def superposed(positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return positions (n, n_atoms, 3) turned and moved onto the reference (Kabsch 1976), whose centre becomes 0.

    mdtraj's own superposition gives up on molecules whose atoms lie in a plane.
    """
    centred = positions - positions.mean(axis=1, keepdims=True)
    target = reference - reference.mean(axis=0)
    u, _, vt = np.linalg.svd(centred.transpose(0, 2, 1) @ target)
    u[:, :, -1] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return np.asarray(centred @ (u @ vt))
