"""Alanine dipeptide with learned CVs from end to end: hot frames, diffusion map, distillation, sampling, surface.

    python benchmarks/learned_surface.py [VARIANT ...]

Plain hot dynamics gives frames; a diffusion map of the distances of heavy atoms gives coordinates, and small networks
that OpenMM runs by itself stand for them. `ScoreSampler` is told of these CVs only. Afterwards φ and ψ of its weighted
configurations give the surface, which is compared with the references in the system's folder. Each variant of
`VARIANTS` replaces its own entry of results/learned_surface.json; the last one is drawn beside it.

Which coordinates are taken, where a variant does not say, is decided by the distances: those whose neighbours are most
alike in them (`unexplained`), the first coordinate always among them. φ and ψ enter the comparison alone.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from matplotlib.figure import Figure
from scipy.spatial import cKDTree
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

import openmm_sgm as sgm
from openmm_sgm.cvs import CollectiveVariable
from openmm_sgm.free_energy import Estimate, Surface
from openmm_sgm.importance import LEAST_EFFECTIVE
from openmm_sgm.measure import load_reference, surface_error
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system
from openmm_sgm.units import thermal_energy

ROOT = Path(__file__).parents[1]
SYSTEM = ROOT / "systems" / "alanine_dipeptide_vacuum"
RESULTS = ROOT / "benchmarks" / "results" / "learned_surface.json"
REFERENCES = ("alanine_dipeptide_vacuum.csv", "umbrella_below_40.csv")
BELOW_KJ_MOL = (20.92, 15.0, 10.0)
HOT_STEPS, FRAME_INTERVAL = 100_000, 25
LANDMARKS = 1500
COORDINATES = 6
HIDDEN = 8
RANGE_QUANTILE = 0.001
NEIGHBOURS = 15
MIXED = 0.1
FORCE_EVALUATIONS = 350_000
LADDER = (420.0, 600.0, 850.0)
SEED = 1


@dataclass(frozen=True)
class Variant:
    """Temperature of the hot dynamics, exponent α of the map, windows of each CV, coordinates if given, options, and
    whether windows start from the hot frames."""

    hot_k: float
    alpha: float
    windows: tuple[int, ...]
    coordinates: tuple[int, ...] = ()
    options: sgm.SamplerOptions = field(default_factory=lambda: sgm.SamplerOptions().made_quick())
    seeded: bool = False


VARIANTS = {
    "first two, 800 K, density left out": Variant(800.0, 1.0, (14, 14), (0, 1)),
    "chosen two, 600 K, density left in": Variant(600.0, 0.0, (14, 14)),
    "chosen two, 600 K, density left in, ladder": Variant(
        600.0, 0.0, (10, 10), options=sgm.SamplerOptions(ladder=LADDER, exploration_training_steps=200, rounds=2)
    ),
    "chosen two, 600 K, density left in, from hot frames": Variant(600.0, 0.0, (10, 10), seeded=True),
    "chosen three, 600 K, density left in, from hot frames": Variant(600.0, 0.0, (7, 7, 7), seeded=True),
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    with threadpool_limits(1):
        for name in names:
            rows[name], surface = run(VARIANTS[name])
            print(name, json.dumps(rows[name], indent=1), flush=True)
            RESULTS.write_text(json.dumps(known(rows), indent=1) + "\n")
            reference = load_reference(SYSTEM / "reference" / REFERENCES[1], load_system(SYSTEM))
            draw(surface, reference).savefig(RESULTS.with_suffix(".png"), dpi=100)


def run(variant: Variant) -> tuple[dict[str, Any], Surface]:
    """Return the figures of one variant, and its surface over φ and ψ."""
    molecule = load_system(SYSTEM)
    started = time.perf_counter()
    hot = hot_frames(molecule, variant.hot_k)
    heavy = np.flatnonzero(molecule.masses > 2).tolist()
    pairs = sgm.PairDistances(tuple(itertools.combinations(heavy, 2)))
    features = pairs(torch.as_tensor(hot)).numpy()
    found = sgm.fit_diffusion_map(
        features, n_coordinates=COORDINATES, alpha=variant.alpha, max_landmarks=LANDMARKS, seed=SEED
    )
    z = found.coordinates(features)
    coordinates = variant.coordinates or choose_coordinates(z, features, len(variant.windows))
    careful, distilled, cvs = [], [], []
    for k, windows in zip(coordinates, variant.windows, strict=True):
        careful.append(sgm.diffusion_cv(f"psi{k + 1}", found, k, pairs, windows=windows))
        distilled.append(sgm.distil(careful[-1], features, hidden=HIDDEN, seed=SEED))
        values = distilled[-1].cv.evaluate(molecule.trajectory(hot))
        low, high = np.quantile(values, [RANGE_QUANTILE, 1 - RANGE_QUANTILE])
        cvs.append(sgm.TorchCV(f"psi{k + 1}", distilled[-1].cv.module, pairs, low, high, windows=windows))
    learned = time.perf_counter() - started
    torsions = dihedrals(molecule, hot)
    values = np.stack([cv.evaluate(molecule.trajectory(hot)) for cv in cvs], axis=1)
    row: dict[str, Any] = {
        "hot_k": variant.hot_k,
        "alpha": variant.alpha,
        "hot_force_evaluations": HOT_STEPS,
        "hot_frames_phi_0_to_120": float(right(torsions[:, 0]).mean()),
        "bandwidth_nm2": found.bandwidth,
        "eigenvalues": found.eigenvalues.tolist(),
        "coordinates": [k + 1 for k in coordinates],
        "distilled_r_squared": [d.r_squared for d in distilled],
        "distilled_rank_correlation": [d.rank_correlation for d in distilled],
        "ranges": [[cv.minimum, cv.maximum] for cv in cvs],
        "rank_correlation_with": correlations(cvs, values, torsions),
        "hot_frames_with_both_sides_near": mixed(values, torsions[:, 0]),
        "learning_seconds": learned,
    }
    print(json.dumps(row, indent=1), flush=True)
    started = time.perf_counter()
    sampler = sgm.ScoreSampler(
        replace(molecule, cvs=tuple(cvs), bins=()),
        seed=SEED,
        workers=0,
        options=variant.options,
        starts=hot if variant.seeded else None,
        progress=lambda line: print(f"{time.perf_counter() - started:6.0f} s  {line}", flush=True),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler.run(force_evaluations=FORCE_EVALUATIONS)
    estimate = sampler.estimate()
    frames = estimate.samples.take()
    trajectory = molecule.trajectory(frames.positions)
    torsions = dihedrals(molecule, frames.positions)
    surface = surface_of(estimate, torsions, molecule)
    on_data = np.all([cv.support(trajectory) > 0 for cv in careful], axis=0)
    weights = np.exp(estimate.log_weights)
    hidden = sampler.hidden_states()
    campaign = sampler.campaign
    assert campaign is not None
    row |= {
        "sampling_force_evaluations": campaign.cost.total,
        "sampling_seconds": time.perf_counter() - started,
        "windows": len(campaign.walkers),
        "history": sampler.history,
        "samples": len(weights),
        "effective_samples": float(1 / (weights**2).sum()),
        "weight_off_the_data": float(weights[~on_data].sum()),
        "share_of_samples_off_the_data": float((~on_data).mean()),
        "warned_of_hidden_states": any(issubclass(w.category, sgm.HiddenStateWarning) for w in caught),
        "disagreements": len(hidden.disagreements),
        "disagreements_shown": [str(d) for d in hidden.disagreements[:6]],
        "windows_with_both_sides": two_sided(frames.windows, torsions[:, 0]),
        "samples_phi_0_to_120": int(right(torsions[:, 0]).sum()),
        "surface_error_rms_reported_kj_mol": surface.error_below(BELOW_KJ_MOL[0]),
    }
    phi = surface.centers[0]
    for name in REFERENCES:
        reference = load_reference(SYSTEM / "reference" / name, molecule)
        row[f"against {name}"] = {
            f"below {limit:g}": {
                "whole": vars(surface_error(surface, reference, limit)),
                "other phi": vars(surface_error(surface, part(reference, ~right(phi), limit), np.inf)),
                "phi 0 to 120": vars(surface_error(surface, part(reference, right(phi), limit), np.inf)),
            }
            for limit in BELOW_KJ_MOL
        }
        row[f"phi_0_to_120_of {name}"] = basin_of_surface(reference, phi, molecule.temperature_k)
    return row, surface


def known(value: Any) -> Any:
    """Return plain values with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [known(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def hot_frames(molecule: MolecularSystem, temperature_k: float) -> np.ndarray:
    """Return frames of plain dynamics, shape (HOT_STEPS/FRAME_INTERVAL, n_atoms, 3), nm."""
    integrator = openmm.LangevinMiddleIntegrator(temperature_k, 1.0, molecule.time_step_fs / 1000)
    integrator.setRandomNumberSeed(SEED)
    reference = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(copy.deepcopy(molecule.system), integrator, reference)
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(temperature_k, SEED)
    frames = []
    for _ in range(HOT_STEPS // FRAME_INTERVAL):
        integrator.step(FRAME_INTERVAL)
        frames.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
    return np.array(frames)


def choose_coordinates(z: np.ndarray, features: np.ndarray, n: int) -> tuple[int, ...]:
    """Return the first coordinate and the n − 1 others with which the least of the features is left unexplained."""
    candidates = [(0, *others) for others in itertools.combinations(range(1, z.shape[1]), n - 1)]
    return min(candidates, key=lambda chosen: unexplained(z[:, chosen], features))


def unexplained(z: np.ndarray, features: np.ndarray) -> float:
    """Return the share of the features' variance that is found among frames that are neighbours in z."""
    return float(features[neighbours(z)].var(axis=1).sum(axis=1).mean() / features.var(axis=0).sum())


def neighbours(z: np.ndarray) -> np.ndarray:
    scaled = z / z.std(axis=0)
    return np.asarray(cKDTree(scaled).query(scaled, k=NEIGHBOURS)[1])


def dihedrals(molecule: MolecularSystem, positions: np.ndarray) -> np.ndarray:
    """Return φ and ψ, shape (n, 2), radians, by mdtraj."""
    trajectory = molecule.trajectory(positions)
    return np.stack([cv.evaluate(trajectory) for cv in molecule.cvs], axis=1)


def correlations(
    cvs: list[CollectiveVariable], values: np.ndarray, torsions: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return Spearman's |ρ| of each learned coordinate with functions of φ and ψ over the hot frames."""
    phi, psi = torsions.T
    functions = {
        "sin phi": np.sin(phi), "cos phi": np.cos(phi), "sin psi": np.sin(psi), "cos psi": np.cos(psi),
        "phi 0 to 120": right(phi),
    }  # fmt: skip
    return {
        cv.name: {name: abs(float(spearmanr(column, f).statistic)) for name, f in functions.items()}
        for cv, column in zip(cvs, values.T, strict=True)
    }


def mixed(values: np.ndarray, phi: np.ndarray) -> float:
    """Return the share of frames whose neighbours in the learned CVs are on both sides, `MIXED` or more on each."""
    share = right(phi)[neighbours(values)].mean(axis=1)
    return float(((share > MIXED) & (share < 1 - MIXED)).mean())


def two_sided(windows: np.ndarray, phi: np.ndarray) -> int:
    """Return how many windows hold `MIXED` or more of their configurations on either side (`right`)."""
    counts = np.bincount(windows)
    share = np.bincount(windows, right(phi), minlength=len(counts))[counts > 0] / counts[counts > 0]
    return int(((share > MIXED) & (share < 1 - MIXED)).sum())


def surface_of(estimate: Estimate, torsions: np.ndarray, molecule: MolecularSystem) -> Surface:
    """Return the surface over φ and ψ from the configurations' weights, errors from the resampled weights."""
    edges = tuple(np.linspace(-np.pi, np.pi, n + 1) for n in molecule.bins)
    weights = np.exp(estimate.log_weights)

    def binned(weight: np.ndarray) -> np.ndarray:
        return np.histogram2d(torsions[:, 0], torsions[:, 1], bins=list(edges), weights=weight)[0]

    kt = thermal_energy(molecule.temperature_k)
    probability, squared = binned(weights), binned(weights**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        sampled = probability**2 / squared >= LEAST_EFFECTIVE
        free_energy = np.where(sampled, -kt * np.log(probability), np.nan)
        replicas = np.array([binned(column) for column in estimate.replicas.T])
        replicas = np.where(replicas > 0, -kt * np.log(replicas), np.nan)
    free_energy -= np.nanmin(free_energy)
    replicas -= np.nanmean(replicas[:, free_energy < 25.0], axis=1)[:, None, None]
    often = sampled & (np.isfinite(replicas).mean(axis=0) >= 0.8)
    error = np.full(free_energy.shape, np.nan)
    error[often] = np.nanstd(replicas[:, often], axis=0, ddof=1)
    names, units = [cv.name for cv in molecule.cvs], [cv.unit for cv in molecule.cvs]
    return Surface(free_energy, error, edges, tuple(names), tuple(units))


def right(phi: np.ndarray) -> np.ndarray:
    """Return where φ is from 0 to 120°: the side of C7ax."""
    return np.asarray((phi > 0) & (phi < np.radians(120)))


def part(reference: np.ndarray, rows: np.ndarray, limit: float) -> np.ndarray:
    """Return the reference in some rows (of φ), below a height above the minimum of the whole."""
    return np.where(rows[:, None] & (reference - np.nanmin(reference) < limit), reference, np.nan)


def basin_of_surface(reference: np.ndarray, phi: np.ndarray, temperature_k: float) -> float:
    kt = thermal_energy(temperature_k)
    p = np.nan_to_num(np.exp(-(reference - np.nanmin(reference)) / kt)).sum(axis=1)
    return float(-kt * np.log(p[right(phi)].sum() / p[~right(phi)].sum()))


def draw(surface: Surface, reference: np.ndarray) -> Figure:
    """Return the surface, the reference, and their difference where the reference is below 5 kcal/mol."""
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    low = reference - np.nanmin(reference) < BELOW_KJ_MOL[0]
    difference = np.where(low, surface.free_energy - reference, np.nan)
    difference -= np.nanmean(difference)
    edges = [np.degrees(edge) for edge in surface.edges]
    height, label = (0, 50), "free energy (kJ/mol)"
    panels = (
        (surface.free_energy, "from learned CVs", "viridis", height, label, "max"),
        (reference - np.nanmin(reference), "umbrella sampling over φ, ψ", "viridis", height, label, "max"),
        (difference, "difference below 20.92 kJ/mol", "RdBu_r", (-6, 6), "difference (kJ/mol)", "both"),
    )  # fmt: skip
    for axes, (image, title, colours, limits, label, extend) in zip(figure.subplots(1, 3), panels, strict=True):
        mesh = axes.pcolormesh(*edges, image.T, cmap=colours, vmin=limits[0], vmax=limits[1], rasterized=True)
        figure.colorbar(mesh, ax=axes, label=label, extend=extend)
        axes.set(title=title, xlabel="φ (°)", ylabel="ψ (°)", xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    return figure


if __name__ == "__main__":
    main(sys.argv[1:] or list(VARIANTS))
