"""Populations of basins: do independent runs scatter as each run's own errors say, about the exact value?

    python benchmarks/populations.py [--seeds 10]

A double well along a bent valley, whose populations are known by quadrature; per run the free energy of basin B over A
and its standard error by the bootstrap, with the exact value for the same bins. The spread over runs divided by the
RMS reported error should be 1; with n runs its own standard error is 1/sqrt(2n − 2).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import openmm_sgm as sgm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from fast_slow import KT, SYSTEMS  # noqa: E402

NAME, BUDGET, HEIGHT = "bent_double_well", 40_000, 25.0


def main(seeds: int) -> None:
    (known,) = (system for system in SYSTEMS if system.name == NAME)
    molecule = sgm.load_system(ROOT / "systems" / NAME)
    rows = []
    for seed in range(1, seeds + 1):
        sampler = sgm.ScoreSampler(molecule, seed=seed, workers=0)
        sampler.run(BUDGET)
        assert sampler.campaign is not None
        estimate = sampler.estimate()
        basins = sgm.find_basins(estimate.surface, (False,), molecule.temperature_k, HEIGHT)
        found = basins.populations(estimate)
        mass = np.exp(-known.surface(estimate.surface.edges[0]) / KT)
        shares = [mass[basins.basin_of == k].sum() for k in range(len(basins))]
        rows.append(
            {
                "seed": seed,
                "force_evaluations": sampler.campaign.cost.total,
                "basins": [basin.minimum.tolist() for basin in found],
                "b_over_a_kj_mol": found[1].free_energy,
                "std_error": found[1].free_energy_error,
                "exact": KT * float(np.log(shares[0] / shares[1])),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    # where A and B change places the difference changes its sign, and so does the exact one
    off = np.array([row["b_over_a_kj_mol"] - row["exact"] for row in rows])
    sign = np.array([np.sign(row["basins"][1][0]) for row in rows])
    reported = np.array([row["std_error"] for row in rows])
    rms = float(np.sqrt(np.mean(reported**2)))
    summary = {
        "runs": len(rows),
        "reported_rms": rms,
        "spread": float((sign * off).std(ddof=1)),
        "spread_over_reported": float((sign * off).std(ddof=1) / rms),
        "mean_off": float((sign * off).mean()),
        "within_2_std_errors": float(np.mean(np.abs(off) < 2 * reported)),
    }
    print(json.dumps(summary, indent=1))
    content = {"system": NAME, **summary, "rows": rows}
    (ROOT / "benchmarks" / "results" / "populations.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    main(parser.parse_args().seeds)
