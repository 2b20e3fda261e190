"""A reference surface of alanine dipeptide by umbrella sampling with OpenMM and pymbar alone; nothing of this package.

    python make_umbrella_below_40.py FOLDER [REPLICAS]

Each replica samples 324 windows (18 × 18, κ = 100 kJ/mol/rad²) for 0.2 ns each, row after row: a row is pulled to its
φ, then through all ψ. A replica takes about four minutes on two cores; its samples are kept in FOLDER, so that the
analysis can be done again.

Windows high on the ridge near φ = 0 are bistable: where such a window stays depends on the side it was pulled from, and
MBAR turns the contradiction into a smooth error over the whole surface. So windows whose free energy is above
`HIGHEST_KJ_MOL` are left out, and the surface with all of them is printed beside it to show what they do.
"""

from __future__ import annotations

import csv
import multiprocessing
import sys
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pymbar
from openmm import app

SYSTEM = Path(__file__).parents[1]
TORSIONS = {"phi": (4, 6, 8, 14), "psi": (6, 8, 14, 16)}
WINDOWS, BINS = 18, 36
FORCE_CONSTANT = 100.0
TEMPERATURE_K = 300.0
KT = 0.00831446261815324 * TEMPERATURE_K
TIME_STEP_PS = 0.002
PULL, FIRST_PULL, EQUILIBRATION, INTERVAL, FRAMES = 4_000, 20_000, 10_000, 100, 1_000
HIGHEST_KJ_MOL = 40.0
THINNED = 5
CENTERS = -np.pi + (np.arange(WINDOWS) + 0.5) * 2 * np.pi / WINDOWS


def row(task: tuple[int, int]) -> np.ndarray:
    """Sample the windows of one φ; return (window, φ, ψ) of every frame."""
    k, seed = task
    pdb = app.PDBFile(str(SYSTEM / "topology.pdb"))
    force_field = app.ForceField("amber99sbildn.xml")
    system = force_field.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
    for name, atoms in TORSIONS.items():
        bias = openmm.CustomTorsionForce(
            f"0.5*{FORCE_CONSTANT}*wrapped^2; wrapped=d-2*pi*floor(d/(2*pi)+0.5); d=theta-center_{name}; pi={np.pi!r}"
        )
        bias.addGlobalParameter(f"center_{name}", 0.0)
        bias.addTorsion(*atoms, [])
        system.addForce(bias)
    rng = np.random.default_rng([seed, k])
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 1.0, TIME_STEP_PS)
    integrator.setRandomNumberSeed(int(rng.integers(1, 2**31)))
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(pdb.positions)
    context.applyConstraints(1e-6)
    topology = mdtraj.Topology.from_openmm(pdb.topology)

    def torsions(positions: list[np.ndarray]) -> np.ndarray:
        trajectory = mdtraj.Trajectory(np.array(positions), topology)
        return mdtraj.compute_dihedrals(trajectory, list(TORSIONS.values()), periodic=False)

    start = torsions([np.array(pdb.getPositions(asNumpy=True)._value)])[0].astype(float)

    def pull(origin: np.ndarray, end: np.ndarray, steps: int) -> None:
        for share in np.linspace(0, 1, 41)[1:]:
            for name, value in zip(TORSIONS, origin + share * (end - origin), strict=True):
                context.setParameter(f"center_{name}", float(value))
            integrator.step(steps // 40)

    context.setVelocitiesToTemperature(TEMPERATURE_K, int(rng.integers(1, 2**31)))
    first = int(np.abs(CENTERS - start[1]).argmin())
    here = start
    there = start + np.array([(CENTERS[k] - start[0] + np.pi) % (2 * np.pi) - np.pi, CENTERS[first] - start[1]])
    pull(here, there, FIRST_PULL)
    frames = []
    for offset in range(WINDOWS):
        if offset:
            here, there = there, there + np.array([0.0, 2 * np.pi / WINDOWS])
            pull(here, there, PULL)
        integrator.step(EQUILIBRATION)
        positions = []
        for _ in range(FRAMES):
            integrator.step(INTERVAL)
            positions.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
        window = k * WINDOWS + (first + offset) % WINDOWS
        frames.append(np.column_stack([np.full(FRAMES, window), torsions(positions)]))
    return np.concatenate(frames)


def reduced_bias(points: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the bias of each window on each point, kT, shape (n_windows, n)."""
    centers = np.stack([CENTERS[windows // WINDOWS], CENTERS[windows % WINDOWS]], axis=1)
    d = points[None] - centers[:, None]
    d -= 2 * np.pi * np.floor(d / (2 * np.pi) + 0.5)
    return 0.5 * FORCE_CONSTANT * (d**2).sum(-1) / KT


def free_energies(samples: np.ndarray, windows: np.ndarray, guess: np.ndarray | None) -> np.ndarray:
    """Return MBAR free energies (kT) of windows from every fifth frame."""
    own = samples[np.isin(samples[:, 0], windows)][::THINNED]
    own = own[np.argsort(own[:, 0], kind="stable")]
    counts = np.array([(own[:, 0] == w).sum() for w in windows])
    mbar = pymbar.MBAR(
        reduced_bias(own[:, 1:], windows), counts, initial_f_k=guess, solver_protocol="robust", relative_tolerance=1e-8
    )
    return np.asarray(mbar.f_k)


def weighted_frames(samples: np.ndarray, windows: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames of `windows` and their weights in the unbiased ensemble."""
    own = samples[np.isin(samples[:, 0], windows)]
    counts = np.array([(own[:, 0] == w).sum() for w in windows])
    mixture = np.zeros(len(own))
    for w, n, value in zip(windows, counts, f - f.max(), strict=True):
        mixture += n * np.exp(value - reduced_bias(own[:, 1:], np.array([w]))[0])
    return own, 1 / mixture


def surface(samples: np.ndarray, windows: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Return −kT log p on the bins, kJ/mol, NaN where no frame lies."""
    own, weights = weighted_frames(samples, windows, f)
    edges = np.linspace(-np.pi, np.pi, BINS + 1)
    p, _, _ = np.histogram2d(own[:, 1], own[:, 2], bins=[edges, edges], weights=weights)
    return np.where(p > 0, -KT * np.log(np.where(p > 0, p, 1)), np.nan)


def solve(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the windows below `HIGHEST_KJ_MOL`, their free energies (kT), and those of all windows together."""
    windows = np.arange(WINDOWS**2)
    f = every = free_energies(samples, windows, None)
    while True:
        keep = KT * (f - f.min()) < HIGHEST_KJ_MOL
        if keep.all():
            return windows, f, every
        windows = windows[keep]
        f = free_energies(samples, windows, f[keep] - f[keep][0])


def analyse(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the surface with windows below `HIGHEST_KJ_MOL`, that with all windows, and how many the former are."""
    windows, f, every = solve(samples)
    return surface(samples, windows, f), surface(samples, np.arange(WINDOWS**2), every), len(windows)


def rms(a: np.ndarray, b: np.ndarray, below: np.ndarray) -> float:
    difference = (a - b)[below & np.isfinite(a) & np.isfinite(b)]
    return float(difference.std())


def main(folder: Path, replicas: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept, complete = [], []
    for replica in range(replicas):
        path = folder / f"replica-{replica}.npy"
        if not path.exists():
            started = time.perf_counter()
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                np.save(path, np.concatenate(pool.map(row, [(k, replica) for k in range(WINDOWS)], chunksize=1)))
            print(f"replica {replica}: {time.perf_counter() - started:.0f} s", flush=True)
        low, every, n = analyse(np.load(path))
        kept.append(low)
        complete.append(every)
        print(f"replica {replica}: {n} windows below {HIGHEST_KJ_MOL:g} kJ/mol", flush=True)
    stack = np.array(kept)
    below = stack.mean(axis=0) - np.nanmin(stack.mean(axis=0)) < 20.92
    stack -= np.nanmean(stack[:, below], axis=1)[:, None, None]
    sampled = np.isfinite(stack).all(axis=0)
    mean = np.where(sampled, stack.mean(axis=0), np.nan)
    error = np.where(sampled, stack.std(axis=0, ddof=1) / np.sqrt(replicas), np.nan)
    for replica, every in enumerate(complete):
        print(
            f"replica {replica}: {rms(kept[replica], mean, below):.2f} kJ/mol from the mean, "
            f"{rms(every, mean, below):.2f} with all windows"
        )
    print(f"standard error below 20.92 kJ/mol, RMS: {np.sqrt(np.mean(error[below] ** 2)):.2f} kJ/mol")
    mean -= np.nanmin(mean)
    axis = -np.pi + (np.arange(BINS) + 0.5) * 2 * np.pi / BINS
    with (folder / "umbrella_below_40.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["phi", "psi", "free_energy_kj_mol", "std_error_kj_mol"])
        for i, j in np.ndindex(mean.shape):
            values = ["" if np.isnan(v) else f"{v:.4f}" for v in (mean[i, j], error[i, j])]
            writer.writerow([f"{axis[i]:.6f}", f"{axis[j]:.6f}", *values])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4)
