"""Hidden states: what methods make of basins that no CV leads to, against the long references kept with two systems.

    python benchmarks/hidden_states.py [psi|serine] [--methods A,B] [--seeds 1,2] [--rivals N] [--ours N] [--workers W]

`psi`: alanine dipeptide with ψ as the only CV, the share of φ > 0 in every window; `serine`: capped serine with φ and
ψ, the shares of χ1's three basins. For the windows of the reference below 25 kJ/mol: how many shares lie within two
standard errors (of both together) of the reference's, and their RMS deviation; and the RMS error of the surface. Ours
are means over all weighted configurations, the rivals' those of each window's own frames. Each method and seed is a
record of benchmarks/results/hidden_<name>.json, replaced when it is run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np

from openmm_sgm.executors import make_executor
from openmm_sgm.free_energy import Estimate
from openmm_sgm.mbar import _pymbar
from openmm_sgm.measure import load_reference, surface_error
from openmm_sgm.options import SamplerOptions
from openmm_sgm.rivals import METHODS
from openmm_sgm.runfolder import plain
from openmm_sgm.sampler import ScoreSampler
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system
from openmm_sgm.windows import WindowGrid

ROOT = Path(__file__).resolve().parents[1]
LADDER = (420.0, 600.0, 850.0)
HIGHEST_KJ_MOL = 25.0


@dataclass(frozen=True)
class Case:
    """A system, the hidden torsion, its basins (degrees, within 0 to 360), and the reference's columns for them."""

    system: str
    torsion: tuple[int, int, int, int]
    basins: dict[str, tuple[float, float]]
    columns: dict[str, tuple[str, str]]


CASES = {
    "psi": Case(
        "alanine_dipeptide_psi", (4, 6, 8, 14), {"phi > 0": (0, 180)}, {"phi > 0": ("population", "std_error")}
    ),
    "serine": Case(
        "serine_dipeptide_vacuum",
        (6, 8, 10, 13),
        {"g_plus": (0, 120), "trans": (120, 240), "g_minus": (240, 360)},
        {name: (f"population_{name}", f"std_error_{name}") for name in ("g_plus", "trans", "g_minus")},
    ),
}


def basins_of(case: Case, molecule: MolecularSystem, positions: np.ndarray) -> np.ndarray:
    """Return whether configurations lie in each basin, bool, shape (n, n_basins)."""
    angles = mdtraj.compute_dihedrals(molecule.trajectory(positions), [case.torsion], periodic=False)[:, 0]
    degrees = np.degrees(angles) % 360
    return np.stack([(low <= degrees) & (degrees < high) for low, high in case.basins.values()], axis=1)


def with_floor(share: np.ndarray, variance: np.ndarray, effective: float) -> tuple[np.ndarray, np.ndarray]:
    """Return shares and their standard errors, no less than one sample would make them."""
    return share, np.sqrt(variance + 1 / max(effective, 1.0) ** 2)


def from_weights(estimate: Estimate, grid: WindowGrid, inside: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return shares by window from all weighted configurations, each reweighted to the window."""
    found, cvs = {}, estimate.samples.column("cvs")
    for window in np.flatnonzero(np.isfinite(estimate.free_energies)):
        log_w = estimate.log_weights - grid.reduced_bias(cvs, grid.centers[window])
        w = np.exp(log_w - log_w.max())
        share, error = estimate.average(inside, -grid.reduced_bias(cvs, grid.centers[window]))
        found[int(window)] = with_floor(share, error**2, float(w.sum() ** 2 / (w**2).sum()))
    return found


def from_chains(windows: np.ndarray, inside: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return shares by window from its own frames, in time order."""
    found = {}
    for window in np.unique(windows):
        own = inside[windows == window].astype(float)
        g = max([1.0, *(_pymbar().timeseries.statistical_inefficiency(x) for x in own.T if np.ptp(x) and len(x) > 3)])
        share = own.mean(axis=0)
        found[int(window)] = with_floor(share, share * (1 - share) * g / len(own), len(own) / g)
    return found


def run(case: Case, method: str, seed: int, budget: int, workers: int) -> dict[str, Any]:
    """Run a method once; return a record."""
    folder = ROOT / "systems" / case.system
    molecule = load_system(folder)
    started = time.perf_counter()
    shares: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    extras: dict[str, Any] = {}
    if method == "score":
        sampler = ScoreSampler(molecule, seed=seed, workers=workers, options=SamplerOptions(ladder=LADDER))
        sampler.run(budget)
        estimate, campaign = sampler.estimate(), sampler.campaign
        assert campaign is not None
        spent, surface = campaign.cost.total, estimate.surface
        shares = from_weights(estimate, campaign.grid, basins_of(case, molecule, estimate.samples.take().positions))
        windows = campaign.active_windows()[0]
        extras["windows_with_trusted_weights"] = f"{campaign.draw_weights().trusted[windows].sum()} of {len(windows)}"
        extras |= {name: sampler.history[-1][name] for name in ("acceptance", "ess", "error_kj_mol")}
    else:
        with make_executor(workers) as executor:
            (snapshot,) = METHODS[method].run(molecule, seed, [budget], executor, workers)
        spent, surface = snapshot.force_evaluations, snapshot.surface
        if snapshot.frames is not None:
            inside = basins_of(case, molecule, snapshot.frames.positions)
            shares = from_chains(snapshot.frames.windows, inside)
    error = surface_error(surface, load_reference(folder / "reference" / "surface.csv", molecule))
    record = {
        "method": method,
        "seed": seed,
        "force_evaluations": spent,
        "seconds": round(time.perf_counter() - started, 1),
        "rmse_kj_mol": error.rmse_kj_mol,
        "coverage": error.coverage,
        "within_two_se": error.within_two_se,
        **extras,
    }
    if method != "md" and shares:
        record |= compare_shares(case, shares)
    return record


def compare_shares(case: Case, shares: dict[int, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Return how the shares of the reference's windows compare; a window without a share counts as wrong."""
    folder = ROOT / "systems" / case.system
    grid = WindowGrid.over(load_system(folder).cvs, 300.0)
    with (folder / "reference" / "hidden.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["free_energy_kj_mol"]) < HIGHEST_KJ_MOL]
    names = [cv.name for cv in load_system(folder).cvs]
    good, deviations, table = [], [], []
    for row in rows:
        window = grid.nearest(np.array([float(row[name]) for name in names]))
        nothing = np.full(len(case.basins), np.nan)
        own, own_error = shares.get(window, (nothing, nothing))
        for k, basin in enumerate(case.basins):
            known, error = (float(row[column]) for column in case.columns[basin])
            close = bool(abs(own[k] - known) <= 2 * np.hypot(own_error[k], error))
            good.append(close)
            deviations.append(own[k] - known)
            table.append([window, basin, known, error, float(own[k]), float(own_error[k]), close])
    all_basins = np.array(good).reshape(len(rows), -1).all(axis=1)
    return {
        "windows": len(rows),
        "windows_within_two_standard_errors": int(all_basins.sum()),
        "shares": len(good),
        "shares_within_two_standard_errors": int(np.sum(good)),
        "share_rms_deviation": float(np.sqrt(np.nanmean(np.square(deviations)))),
        "window_basin_known_error_share_error_good": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", default="psi", choices=CASES)
    parser.add_argument("--methods", default="score,umbrella,replica-exchange")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--rivals", type=int, default=1_000_000)
    parser.add_argument("--ours", type=int, default=400_000)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    path = ROOT / "benchmarks" / "results" / f"hidden_{asked.case}.json"
    for seed in (int(text) for text in asked.seeds.split(",")):
        for method in asked.methods.split(","):
            budget = asked.ours if method == "score" else asked.rivals
            record = run(CASES[asked.case], method, seed, budget, asked.workers)
            records = json.loads(path.read_text()) if path.exists() else []
            records = [old for old in records if (old["method"], old["seed"]) != (method, seed)] + [record]
            records.sort(key=lambda r: (r["method"], r["seed"]))
            path.write_text("[\n" + ",\n".join(json.dumps(plain(r)) for r in records) + "\n]\n")  # a line a record
            print({key: value for key, value in record.items() if not isinstance(value, list)}, flush=True)


if __name__ == "__main__":
    main()
