"""restrict(lift(c)) against the label's own law of the slow variable, exp(−F(ξ)/kT − κ(ξ − c)²/2kT): where there are
data, between them, in a gap that was cut into them, and beyond them.

    python tests/test_consistency.py     # the table of docs/lifting.md
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from fast_slow import KT, SYSTEMS, half_moon
from scipy import stats

import openmm_sgm as sgm

ROOT = Path(__file__).parents[1]
MOON = next(known for known in SYSTEMS if known.name == "half_moon")
FRAMES, DRAWS = 3000, 1000
GAP = (0.2, 0.42)
"""Values of the slow variable whose frames are left out: on the inner flank of a well."""
PLACES = {
    "in sample": (-0.5, 0.5),
    "interpolated": (-0.4, -0.6),
    "in a gap of the data": (0.31,),
    "on the ridge, few data": (0.0,),
    "extrapolated": (-0.95, 0.95),
    "outside the CV's range": (-1.4, 1.4),
}
LARGEST = {"in sample": 0.2, "interpolated": 0.2, "in a gap of the data": 0.6, "on the ridge, few data": 0.3}
"""Of the 1-Wasserstein distance in standard deviations of the law. Beyond the data only the warning is promised; in a
gap the model is of the data that it was given, which have the gap."""


def trained() -> sgm.ScoreLifting:
    """Return the lifting of a small network, trained on exact unbiased configurations with a gap."""
    rng = np.random.default_rng(1)
    density = MOON.density()
    slow = rng.choice(MOON.slow, 2 * FRAMES, p=density.sum(axis=1) / density.sum())
    fast = rng.choice(MOON.fast, 2 * FRAMES, p=density.sum(axis=0) / density.sum())
    slow += rng.uniform(-0.5, 0.5, len(slow)) * (MOON.slow[1] - MOON.slow[0])
    keep = np.flatnonzero((slow < GAP[0]) | (slow > GAP[1]))[:FRAMES]
    x, y = half_moon(slow[keep], fast[keep])
    positions = np.stack([x, y, rng.normal(scale=np.sqrt(KT / 25), size=FRAMES)], axis=1)[:, None]
    molecule = sgm.load_system(ROOT / "systems" / "half_moon")
    frames = sgm.RecordedFrames(positions, None, None, np.zeros((FRAMES, 0)), np.arange(FRAMES))
    options = sgm.SamplerOptions(
        training=sgm.TrainingOptions(steps=1500, batch_size=256, rows=6000),
        network=sgm.NetworkOptions(width=64, hidden=64, conditioning=32),
    )
    found = sgm.train_from_frames(molecule, frames, options=options, seed=1)
    return sgm.ScoreLifting(molecule, found.grid, molecule.evaluate_cvs(positions), found.generator)


def draws_of_the_law(lifting: sgm.ScoreLifting, label: float) -> np.ndarray:
    law = MOON.slow_distribution(label, float(lifting.grid.force_constants[0]))
    return np.interp((np.arange(20_000) + 0.5) / 20_000, law, MOON.slow)


def compare(lifting: sgm.ScoreLifting, label: float) -> dict[str, float]:
    """Return distance, shift of the mean and ratio of the widths of restrict(lift(label)) and the label's law."""
    lifted = lifting.lift({"slow": label}, DRAWS, seed=2)
    slow = lifting.restrict(lifted.positions)["slow"]
    exact, other = (draws_of_the_law(lifting, value) for value in (label, label + 0.1))
    rng = np.random.default_rng(3)
    floor = np.mean([stats.wasserstein_distance(rng.choice(exact, DRAWS), exact) for _ in range(10)])
    return {
        "frames": lifted.effective,
        "distance": stats.wasserstein_distance(slow, exact) / exact.std(),
        "floor": float(floor) / exact.std(),
        "distance_from_another": stats.wasserstein_distance(slow, other) / exact.std(),
        "shift": (slow.mean() - exact.mean()) / exact.std(),
        "width": slow.std() / exact.std(),
    }


@pytest.fixture(scope="module")
def lifting() -> sgm.ScoreLifting:
    return trained()


@pytest.mark.parametrize("place", PLACES)
def test_restriction_of_what_is_lifted_has_the_labels_own_law(lifting: sgm.ScoreLifting, place: str) -> None:
    """The raw draws, without a test. Beyond the data the user is warned, and only there.

    The law of a label 0.1 away would be refused, as the test shows.
    """
    for label in PLACES[place]:
        if place in LARGEST:
            with warnings.catch_warnings():
                warnings.simplefilter("error", sgm.ExtrapolationWarning)
                found = compare(lifting, label)
            assert found["distance"] < LARGEST[place] < found["distance_from_another"]
        else:
            with pytest.warns(sgm.ExtrapolationWarning, match="hardly any data"):
                compare(lifting, label)


if __name__ == "__main__":
    made = trained()
    for where, labels in PLACES.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows = [compare(made, label) for label in labels]
        warned = any(issubclass(w.category, sgm.ExtrapolationWarning) for w in caught)
        shown = (
            "{frames:.0f} | {distance:.2f} ({floor:.2f}) | {shift:+.2f} | {width:.2f}".format(**row) for row in rows
        )
        for label, cell in zip(labels, shown, strict=True):
            print(f"| {where} (s = {label:g}) | {cell} | {'yes' if warned else 'no'} |")
