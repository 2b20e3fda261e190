"""The fast/slow systems against their closed forms: score with its defaults, and umbrella sampling beside it.

    python benchmarks/fast_slow.py [SEED ...]

For each system: RMS error of the free energy along the slow variable below 20 kJ/mol, in kT. Umbrella sampling has its
windows pulled from one start; where the fast variable has two modes it sees the one that it was started in. `score` has
a ladder there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import openmm_sgm as sgm
from openmm_sgm.executors import SerialExecutor
from openmm_sgm.free_energy import Surface
from openmm_sgm.rivals import METHODS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from fast_slow import KT, SYSTEMS, FastSlow  # noqa: E402

BUDGET = 80_000
LADDER = {"bimodal": (500.0, 1000.0, 2000.0), "muller_brown": (500.0, 1000.0, 2000.0)}
BELOW = 20.0


def main(seeds: list[int]) -> None:
    rows = []
    for known in SYSTEMS:
        molecule = sgm.load_system(ROOT / "systems" / known.name)
        for seed in seeds:
            sampler = sgm.ScoreSampler(
                molecule, seed=seed, workers=0, options=sgm.SamplerOptions(ladder=LADDER.get(known.name, ()))
            )
            sampler.run(BUDGET)
            campaign = sampler.campaign
            assert campaign is not None
            asked = campaign.acceptance[np.isfinite(campaign.acceptance)]
            rows.append(
                row(known, "score", seed, sampler.surface(), campaign.cost.total)
                | {"acceptance": round(float(np.median(asked)), 2)}
            )
            print(json.dumps(rows[-1]), flush=True)
            for snapshot in METHODS["umbrella"].run(molecule, seed, [BUDGET], SerialExecutor(), 0):
                rows.append(row(known, "umbrella", seed, snapshot.surface, snapshot.force_evaluations))
                print(json.dumps(rows[-1]), flush=True)
    output = ROOT / "benchmarks" / "results" / "fast_slow.json"
    output.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in rows) + "\n]\n")


def row(known: FastSlow, method: str, seed: int, surface: Surface, evaluations: int) -> dict[str, object]:
    exact = known.surface(surface.edges[0])
    low = exact < BELOW
    both = low & np.isfinite(surface.free_energy)
    difference = (surface.free_energy - exact)[both]
    difference -= difference.mean()
    reported = float(np.sqrt(np.mean(surface.std_error[both] ** 2)))
    return {
        "system": known.name,
        "method": method,
        "seed": seed,
        "force_evaluations": evaluations,
        "error_kt": round(float(np.sqrt(np.mean(difference**2))) / KT, 3),
        "reported_kt": round(reported / KT, 3),
        "covered": round(float(both.sum() / low.sum()), 3),
    }


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [1, 2])
