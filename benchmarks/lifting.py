"""Ways to lift, on fast/slow systems with closed forms: accuracy in sample, between, in a gap, beyond; and cost.

    python benchmarks/lifting.py

All are made from the same `FRAMES` exact, unbiased configurations. `w1` is the 1-Wasserstein distance of `DRAWS` lifted
values from the label's law, in units of its standard deviation; `floor` is what as many exact draws have. The score
model's rows are its raw draws; `score, weighed` are the same after resampling by their exact weights.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from scipy import stats

import openmm_sgm as sgm
from openmm_sgm.inject import log_importance
from openmm_sgm.lifting import Lifting
from openmm_sgm.pretrain import train_from_frames
from openmm_sgm.reporter import RecordedFrames

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from fast_slow import KT, SYSTEMS, FastSlow  # noqa: E402

FRAMES, DRAWS = 4000, 1000
LABELS = {
    "bent_double_well": {"in sample": (-0.5, 0.5), "between": (-0.3, 0.3), "gap": (0.0,), "beyond": (-0.95, 0.95)},
    "bimodal": {"in sample": (-0.3, 0.0, 0.3), "gap": (0.6,), "beyond": (-1.8, 1.8)},
}
"""In `bimodal` the configurations with x between 0.45 and 0.75 are left out; the double well has its own gap."""
GAP = (0.45, 0.75)


def exact_configurations(known: FastSlow, n: int, n_atoms: int, rng: np.random.Generator) -> np.ndarray:
    """Return unbiased configurations (n, n_atoms, 3), nm, drawn on the quadrature grid; idle coordinates are normal."""
    density = known.density().ravel()
    cells = rng.choice(density.size, size=n, p=density / density.sum())
    i, j = np.unravel_index(cells, (len(known.slow), len(known.fast)))
    positions = np.sqrt(KT / 25.0) * rng.standard_normal((n, n_atoms, 3))
    positions[:, 0, 0] = known.slow[i] + (rng.random(n) - 0.5) * (known.slow[1] - known.slow[0])
    positions[:, -1, 1] = known.fast[j] + (rng.random(n) - 0.5) * (known.fast[1] - known.fast[0])
    return positions


def measure(known: FastSlow) -> list[dict[str, object]]:
    rng = np.random.default_rng(1)
    molecule = sgm.load_system(ROOT / "systems" / known.name)
    positions = exact_configurations(known, 2 * FRAMES, molecule.n_atoms, rng)
    if known.name == "bimodal":
        x = positions[:, 0, 0]
        positions = positions[(x < GAP[0]) | (x > GAP[1])]
    positions = positions[:FRAMES]
    frames = RecordedFrames(positions, None, None, np.zeros((FRAMES, 0)), np.arange(FRAMES))
    trained = train_from_frames(molecule, frames, seed=1)
    arguments = (molecule, trained.grid, positions, np.zeros(FRAMES))
    liftings: dict[str, Lifting] = {
        "nearest": sgm.NearestLifting(*arguments),
        "kernel density": sgm.KernelDensityLifting(*arguments, trained.generator),
        "monte carlo score": sgm.MonteCarloScoreLifting(*arguments, trained.generator),
        "score": sgm.ScoreLifting(molecule, trained.grid, molecule.evaluate_cvs(positions), trained.generator),
    }
    started = time.perf_counter()
    unconditional = sgm.train_unconditional(molecule, positions, np.zeros(FRAMES), seed=1)
    setup = {"score": round(trained.seconds, 1), "guided score": round(time.perf_counter() - started, 1)}
    liftings["guided score"] = sgm.GuidedLifting(
        molecule, trained.grid, molecule.evaluate_cvs(positions), unconditional
    )
    constant = float(trained.grid.force_constants[0])
    rows: list[dict[str, object]] = []
    for place, labels in LABELS[known.name].items():
        for label in labels:
            laws = (
                (known.slow, known.slow_distribution(label, constant)),
                (known.fast, known.fast_distribution(label, constant)),
            )
            exact = [np.interp((np.arange(20_000) + 0.5) / 20_000, law, grid) for grid, law in laws]
            floor = [distance(rng.choice(values, DRAWS), values) for values in exact]
            for name, lifting in liftings.items():
                started = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", sgm.ExtrapolationWarning)
                    lifted = lifting.lift({"x": label}, DRAWS, seed=2)
                seconds = time.perf_counter() - started
                rows.append(
                    row(known, place, label, name, lifted.positions, exact, floor, lifted.extrapolated, seconds)
                )
                if name == "score":
                    weights = importance(known, trained, lifted, constant)
                    chosen = lifted.positions[rng.choice(DRAWS, size=DRAWS, p=weights)]
                    entry = row(
                        known, place, label, "score, weighed", chosen, exact, floor, lifted.extrapolated, seconds
                    )
                    rows.append(entry | {"ess": round(float(1 / (weights**2).sum() / DRAWS), 3)})
    return [r | {"setup_seconds": setup.get(str(r["lifting"]).split(",")[0], 0.0)} for r in rows]


def importance(known: FastSlow, trained: sgm.Pretrained, lifted: sgm.Lifted, constant: float) -> np.ndarray:
    """Return normalised importance weights from the closed form of the potential."""
    x, y = lifted.positions[:, 0, 0], lifted.positions[:, -1, 1]
    idle = lifted.positions.copy()
    idle[:, 0, 0] = idle[:, -1, 1] = 0.0
    energies = known.potential(x, y) + 12.5 * (idle**2).sum(axis=(1, 2))
    bias = 0.5 * constant * (x - lifted.label[0]) ** 2 / KT
    log_w = log_importance(energies, bias, np.zeros(len(x)), lifted.log_density, 1 / KT)
    weights = np.exp(log_w - log_w.max())
    return np.asarray(weights / weights.sum())


def distance(drawn: np.ndarray, exact: np.ndarray) -> float:
    return float(stats.wasserstein_distance(drawn, exact) / exact.std())


def row(
    known: FastSlow,
    place: str,
    label: float,
    name: str,
    positions: np.ndarray,
    exact: list[np.ndarray],
    floor: list[float],
    extrapolated: bool,
    seconds: float,
) -> dict[str, object]:
    drawn = positions[:, 0, 0], positions[:, -1, 1]
    slow, fast = (distance(values, law) for values, law in zip(drawn, exact, strict=True))
    return {
        "system": known.name,
        "place": place,
        "label": label,
        "lifting": name,
        "w1_slow": round(slow, 3),
        "w1_fast": round(fast, 3),
        "floor_slow": round(floor[0], 3),
        "floor_fast": round(floor[1], 3),
        "extrapolation_warned": extrapolated,
        "ms_per_configuration": round(1000 * seconds / DRAWS, 3),
    }


if __name__ == "__main__":
    found = [entry for known in SYSTEMS if known.name in LABELS for entry in measure(known)]
    output = ROOT / "benchmarks" / "results" / "lifting.json"
    output.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in found) + "\n]\n")
    for entry in found:
        print(json.dumps(entry))
