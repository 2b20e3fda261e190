"""ψ as the only CV of alanine dipeptide: the share of φ > 0 in every window, by ours with a ladder and by two rivals.

    python benchmarks/hidden_psi.py [SEEDS] [FORCE_EVALUATIONS_OF_RIVALS] [FORCE_EVALUATIONS_OF_OURS]

Writes benchmarks/results/hidden_psi.json: for each method and seed the windows below 25 kJ/mol whose share lies within
two standard errors (of both together) of the reference's.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import mdtraj
import numpy as np

from openmm_sgm.executors import make_executor
from openmm_sgm.free_energy import Estimate
from openmm_sgm.mbar import _pymbar
from openmm_sgm.options import SamplerOptions
from openmm_sgm.sampler import ScoreSampler
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system
from openmm_sgm.umbrella import replica_exchange, umbrella
from openmm_sgm.windows import WindowGrid

ROOT = Path(__file__).resolve().parents[1]
SYSTEM = ROOT / "systems" / "alanine_dipeptide_psi"
PHI = (4, 6, 8, 14)
LADDER = (420.0, 600.0, 850.0)
HIGHEST_KJ_MOL = 25.0


def positive(molecule: MolecularSystem, positions: np.ndarray) -> np.ndarray:
    return mdtraj.compute_dihedrals(molecule.trajectory(positions), [PHI], periodic=False)[:, 0] > 0


def with_floor(share: float, variance: float, effective: float) -> tuple[float, float]:
    """Return a share and its standard error, no less than one sample would make it."""
    return share, float(np.sqrt(variance + 1 / max(effective, 1.0) ** 2))


def from_weights(estimate: Estimate, grid: WindowGrid, inside: np.ndarray) -> dict[int, tuple[float, float]]:
    """Return shares by window from all weighted configurations, each reweighted to the window."""
    found = {}
    for window in np.flatnonzero(np.isfinite(estimate.free_energies)):
        log_w = estimate.log_weights - grid.reduced_bias(estimate.samples.column("cvs"), grid.centers[window])
        w = np.exp(log_w - log_w.max())
        share = float(w @ inside / w.sum())
        variance = float((w**2 * (inside - share) ** 2).sum() / w.sum() ** 2)
        found[int(window)] = with_floor(share, variance, float(w.sum() ** 2 / (w**2).sum()))
    return found


def from_chains(windows: np.ndarray, inside: np.ndarray) -> dict[int, tuple[float, float]]:
    """Return shares by window from its own frames, in time order."""
    found = {}
    for window in np.unique(windows):
        own = inside[windows == window].astype(float)
        g = _pymbar().timeseries.statistical_inefficiency(own) if np.ptp(own) > 0 and len(own) > 3 else 1.0
        share = float(own.mean())
        found[int(window)] = with_floor(share, share * (1 - share) * g / len(own), len(own) / g)
    return found


def main(seeds: int = 3, rivals: int = 1_000_000, ours: int = 1_000_000) -> None:
    molecule = load_system(SYSTEM)
    with (SYSTEM / "reference" / "hidden.csv").open(newline="") as file:
        reference = dict(enumerate(csv.DictReader(file)))
    counted = [k for k, row in reference.items() if float(row["free_energy_kj_mol"]) < HIGHEST_KJ_MOL]
    records = []
    for seed in range(1, seeds + 1):
        for method in ("score", "umbrella", "replica-exchange"):
            started = time.perf_counter()
            if method == "score":
                sampler = ScoreSampler(molecule, seed=seed, options=SamplerOptions(ladder=LADDER))
                sampler.run(ours)
                estimate, campaign = sampler.estimate(), sampler.campaign
                assert campaign is not None
                spent = campaign.cost.total
                shares = from_weights(estimate, campaign.grid, positive(molecule, estimate.samples.take().positions))
            else:
                run = umbrella if method == "umbrella" else replica_exchange
                with make_executor(0) as executor:
                    (snapshot,) = run(molecule, seed, [rivals], executor, 0)
                assert snapshot.frames is not None
                spent = snapshot.force_evaluations
                shares = from_chains(snapshot.frames.windows, positive(molecule, snapshot.frames.positions))
            within, table = 0, []
            for k in counted:
                known, error = float(reference[k]["population"]), float(reference[k]["std_error"])
                share, own = shares.get(k, (float("nan"), float("nan")))
                good = abs(share - known) <= 2 * np.hypot(own, error)
                within += bool(good)
                table.append([float(reference[k]["psi"]), known, error, share, own, bool(good)])
            records.append(
                {
                    "method": method,
                    "seed": seed,
                    "force_evaluations": spent,
                    "seconds": round(time.perf_counter() - started, 1),
                    "windows": len(counted),
                    "within_two_standard_errors": within,
                    "psi_known_error_share_error_good": table,
                }
            )
            print(f"{method}, seed {seed}: {within} of {len(counted)} windows, {spent:,} force evaluations", flush=True)
    path = ROOT / "benchmarks" / "results" / "hidden_psi.json"
    path.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
