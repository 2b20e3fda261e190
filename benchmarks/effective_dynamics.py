"""Alanine dipeptide in implicit solvent: stationary density and passage times from bursts, against plain MD.

    python benchmarks/effective_dynamics.py [--quick]

A run of `ScoreSampler` gives an equilibrium sample in every cell of (φ, ψ); very short bursts from it give transition
probabilities whose stationary law is compared with the reference surface, and longer ones, from the basins, mean first
passage times at several lags, compared with plain MD. Kramers–Moyal estimates of the same bursts are beside them.
Writes results/effective_dynamics.json; some 7 million steps of MD besides the plain MD's 30 million, an hour.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app
from threadpoolctl import threadpool_limits

import openmm_sgm as sgm
from openmm_sgm.measure import load_reference
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system
from openmm_sgm.units import thermal_energy

ROOT = Path(__file__).parents[1]
SYSTEM = ROOT / "systems" / "alanine_dipeptide_obc"
RESULTS = ROOT / "benchmarks" / "results" / "effective_dynamics.json"
CELLS, BELOW_KJ_MOL, SEED = 18, 15.0, 3
FORCE_EVALUATIONS, PLAIN_STEPS = 300_000, 30_000_000
SHORT = {"per_cell": 200, "steps": 50, "interval": 25, "below": 35.0}
LONG = {"per_cell": 16, "steps": 2500, "interval": 50, "below": 15.0}
SHORT_LAGS, LONG_LAGS = (0.05, 0.1), (0.5, 1.0, 2.0, 3.0, 4.0, 5.0)


def main() -> None:
    quick = 100 if "--quick" in sys.argv else 1
    molecule = load_system(SYSTEM)
    options = sgm.SamplerOptions().made_quick()
    sampler = sgm.ScoreSampler(molecule, seed=SEED, options=options, workers=1)
    sampler.run(force_evaluations=FORCE_EVALUATIONS)
    estimate = sampler.estimate()
    grid = sgm.CellGrid.of_cvs(molecule.cvs, CELLS)
    kt = thermal_energy(molecule.temperature_k)
    reference = on_cells(load_reference(SYSTEM / "reference" / "surface.csv", molecule), kt)
    own = on_cells(estimate.surface.free_energy, kt)
    basins = basins_of(grid.centers, reference)
    result: dict[str, Any] = {
        "force_evaluations": {"sampler": sampler.campaign.cost.total},  # type: ignore[union-attr]
        "surface_of_the_run_rmse_kj_mol": rmse(own, reference)[0],
        "stationary_density": [],
        "passage_times_ps": [],
    }
    simulation = simulation_of(molecule)
    for name, plan in (("short", SHORT), ("long", LONG)):
        positions, sample = starts(estimate, grid, plan, own, quick)
        bursts = sgm.run_bursts(
            simulation, positions, molecule.cvs, steps=plan["steps"], interval=plan["interval"], seed=SEED
        )
        result["force_evaluations"][name] = bursts.force_evaluations
        for lag in SHORT_LAGS if name == "short" else LONG_LAGS:
            model = sgm.estimate_transitions(
                bursts.values, bursts.time_spacing, grid, lag=lag, seed=SEED, groups=sample, n_bootstrap=50
            )
            if name == "short":
                surface = model.surface(molecule.temperature_k)
                error, share = rmse(surface.free_energy.ravel(), reference)
                row: dict[str, Any] = {"lag_ps": lag, "rmse_kj_mol": error, "coverage": share}
                row["std_error_kj_mol"] = surface.error_below(BELOW_KJ_MOL)
                row["kramers_moyal_rmse_kj_mol"] = kramers_moyal(bursts, grid, lag, sample, molecule, reference)
                result["stationary_density"].append(row)
            else:
                row = {"lag_ps": lag}
                for a, b in (("beta", "alpha"), ("alpha", "beta")):
                    row[f"{a} to {b}"] = model.mean_first_passage_time(basins[a], basins[b])
                result["passage_times_ps"].append(row)
            print(row, flush=True)
    steps = PLAIN_STEPS // quick
    cells = grid.cells_of(plain_md(molecule, steps))
    result["force_evaluations"]["plain_md"] = steps
    result["plain_md_ps"] = {
        f"{a} to {b}": direct(cells, basins[a], basins[b]) for a, b in (("beta", "alpha"), ("alpha", "beta"))
    }
    print(result["plain_md_ps"])
    if quick == 1:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def on_cells(free_energy: np.ndarray, kt: float) -> np.ndarray:
    """Return the free energy of the cells, each four bins, kJ/mol; infinite where nothing was sampled."""
    p = np.exp(-np.nan_to_num(free_energy, nan=np.inf) / kt).reshape(CELLS, 2, CELLS, 2).sum(axis=(1, 3)).ravel()
    with np.errstate(divide="ignore"):
        return -kt * np.log(p / p.max())


def rmse(free_energy: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the RMS difference over cells below the limit, aligned by its mean, and the share that is there."""
    low = reference < BELOW_KJ_MOL
    both = low & np.isfinite(free_energy)
    difference = free_energy[both] - reference[both]
    return float(difference.std()), float(both.sum() / low.sum())


def basins_of(centers: np.ndarray, free_energy: np.ndarray) -> dict[str, np.ndarray]:
    """Return the cells of the extended (β, PII) and helical (αR) basins, below 8 kJ/mol."""
    phi, psi = np.degrees(centers).T
    low = free_energy < 8
    extended = (phi < -40) & (np.abs((psi - 150 + 180) % 360 - 180) < 35)
    return {"beta": extended & low, "alpha": (phi < -40) & (phi > -130) & (np.abs(psi + 30) < 35) & low}


def starts(
    estimate: sgm.Estimate, grid: sgm.CellGrid, plan: dict[str, Any], free_energy: np.ndarray, quick: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return configurations in equilibrium within each cell below the plan's height, and which samples they are."""
    per_cell = max(plan["per_cell"] // quick, 10)
    positions, sample = estimate.starts(grid, per_cell, SEED)
    cells = grid.cells_of(estimate.samples.column("cvs")[sample])
    kept = free_energy[cells] < plan["below"]
    return positions[kept], sample[kept]


def simulation_of(molecule: MolecularSystem) -> app.Simulation:
    integrator = openmm.LangevinMiddleIntegrator(
        molecule.temperature_k, molecule.friction_per_ps, molecule.time_step_fs / 1000
    )
    integrator.setConstraintTolerance(1e-6)
    integrator.setRandomNumberSeed(SEED)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, molecule.system, integrator, platform)
    simulation.context.setPositions(molecule.positions)
    simulation.context.applyConstraints(1e-6)
    simulation.context.setVelocitiesToTemperature(molecule.temperature_k, SEED)
    return simulation


def kramers_moyal(
    bursts: Any, grid: sgm.CellGrid, lag: float, sample: np.ndarray, molecule: MolecularSystem, reference: np.ndarray
) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no plateau is what is to be shown
        dynamics = sgm.estimate_drift_and_diffusion(
            bursts.values, bursts.time_spacing, grid, seed=SEED, groups=sample, estimator="direct", lags=[lag],
            n_bootstrap=10,
        )  # fmt: skip
        return rmse(dynamics.surface(molecule.temperature_k).free_energy.ravel(), reference)[0]


def plain_md(molecule: MolecularSystem, steps: int, interval: int = 50) -> np.ndarray:
    """Return φ and ψ along plain MD, every 0.1 ps."""
    simulation, started, values = simulation_of(molecule), time.perf_counter(), []
    for _ in range(max(1, steps // (2000 * interval))):
        positions = []
        for _ in range(2000):
            simulation.step(interval)
            positions.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)
        values.append(molecule.evaluate_cvs(np.array(positions)))
    print(f"plain MD: {time.perf_counter() - started:.0f} s", flush=True)
    return np.concatenate(values)


def direct(cells: np.ndarray, start: np.ndarray, target: np.ndarray, spacing: float = 0.1) -> tuple[float, float]:
    """Return the mean time from each visit of `start` to the next of `target`, and its error from ten blocks, ps."""
    n = len(cells)
    arrivals = np.append(np.flatnonzero(target[cells]), n)
    following = arrivals[np.searchsorted(arrivals, np.arange(n))]
    times = (following - np.arange(n)) * spacing
    counted = start[cells] & (following < n)
    blocks = [times[part][counted[part]] for part in np.array_split(np.arange(n), 10)]
    sizes, means = np.array([len(b) for b in blocks]), np.array([b.mean() if len(b) else 0.0 for b in blocks])
    mean = (sizes * means).sum() / sizes.sum()
    return float(mean), float(np.sqrt((sizes**2 * (means - mean) ** 2).sum()) / sizes.sum())


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
