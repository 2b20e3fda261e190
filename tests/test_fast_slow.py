"""The fast/slow systems of `systems/`: surface, conditional law and mode weights against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import REPOSITORY
from fast_slow import KT, SYSTEMS, FastSlow, fast_of
from scipy import stats

import openmm_sgm as sgm

SMALL = sgm.SamplerOptions(
    training=sgm.TrainingOptions(steps=2000, batch_size=256, rows=8000),
    network=sgm.NetworkOptions(width=64, hidden=64, conditioning=32),
    exploration_training_steps=250,
    rounds=2,
)
HOT = (500.0, 1000.0, 2000.0)
LADDER = {"bimodal": HOT, "muller_brown": HOT}
"""Where the fast variable has two modes, which no window leaves by itself."""
BUDGET = {"bimodal": 80_000, "muller_brown": 120_000, "s_shape": 120_000}
"""Force evaluations where 20,000 do not suffice: with 40,000 the S has labels that are refused."""
LABELS, DRAWS = 50, 150


@pytest.fixture(scope="module", params=SYSTEMS, ids=lambda s: s.name)
def sampled(request: pytest.FixtureRequest) -> tuple[FastSlow, sgm.ScoreSampler]:
    known: FastSlow = request.param
    molecule = sgm.load_system(REPOSITORY / "systems" / known.name)
    ladder = LADDER.get(known.name, ())
    options = sgm.SamplerOptions(**{**vars(SMALL), "ladder": ladder})
    sampler = sgm.ScoreSampler(molecule, seed=3, workers=0, options=options)
    sampler.run(BUDGET.get(known.name, 20_000))
    return known, sampler


def labels_of(sampler: sgm.ScoreSampler) -> np.ndarray:
    """Return labels between and at windows of the surface."""
    campaign = sampler.campaign
    assert campaign is not None
    windows = campaign.active_windows()[0]
    heights = (campaign.free_energies[windows] - np.nanmin(campaign.free_energies)) * KT
    centers = campaign.grid.centers[windows[heights < 25], 0]
    return np.concatenate([centers, np.linspace(centers.min(), centers.max(), LABELS - len(centers))])


def test_surface_is_the_closed_form(sampled: tuple[FastSlow, sgm.ScoreSampler]) -> None:
    """Within 0.1 kT RMS below 20 kJ/mol, and within its own errors. Seen to fail for `bimodal` without a ladder."""
    known, sampler = sampled
    surface = sampler.surface()
    exact = known.surface(surface.edges[0])
    low = exact < 20
    assert np.isfinite(surface.free_energy[low]).all()
    difference = (surface.free_energy - exact)[low]
    difference -= difference.mean()
    assert np.sqrt(np.mean(difference**2)) < 0.1 * KT
    assert np.sqrt(np.mean((difference / surface.std_error[low]) ** 2)) < 2


def test_lifted_configurations_have_the_conditional_law(sampled: tuple[FastSlow, sgm.ScoreSampler]) -> None:
    """Kolmogorov–Smirnov p > 0.01 at 95 % of 50 labels, in sample and between, for the CV and the
    fast variable; and the 1-Wasserstein distance within 2 % of the law's spread and what as many exact draws have.

    Seen to fail with untested draws of the bimodal system (those of the double well are as good), and with the law of
    a force constant 1.5 times as large for both.
    """
    known, sampler = sampled
    constant = float(sampler.campaign.grid.force_constants[0])  # type: ignore[union-attr]
    rng = np.random.default_rng(7)
    p_values, distances, allowed, refused = [], [], [], 0
    name = sampler.molecule.cvs[0].name
    for label in labels_of(sampler):
        try:
            positions = sampler.lift({name: label}, DRAWS).positions
        except sgm.InputError:  # the weights cannot be trusted there
            refused += 1
            continue
        for drawn, grid, law in (
            (fast_of(known.name, positions), known.fast, known.fast_distribution(label, constant)),
            (sampler.generator.restrict(positions)[name], known.slow, known.slow_distribution(label, constant)),
        ):
            p_values.append(stats.kstest(drawn, lambda v, g=grid, c=law: np.interp(v, g, c)).pvalue)
            exact = np.interp((np.arange(4000) + 0.5) / 4000, law, grid)
            scatter = [stats.wasserstein_distance(rng.choice(exact, DRAWS), exact) for _ in range(20)]
            distances.append(stats.wasserstein_distance(drawn, exact))
            allowed.append(0.02 * exact.std() + np.mean(scatter) + 4 * np.std(scatter))
    # at the overhangs of the S this small network is poor, and says so at a fifth of the labels (12 and 10 were seen)
    assert refused <= (0.3 if known.name == "s_shape" else 0.1) * LABELS
    assert np.mean(np.array(p_values) > 0.01) >= 0.95
    # what the generator hardly draws clumps in a chain: 0.97 was seen for half_moon and bimodal
    curved = known.name in ("bimodal", "muller_brown", "half_moon", "s_shape")
    assert np.mean(np.array(distances) < np.array(allowed)) >= (0.95 if curved else 0.98)


def test_both_modes_are_there_with_their_weights(sampled: tuple[FastSlow, sgm.ScoreSampler]) -> None:
    """The share of y > 0 along x in the bimodal system. Seen to fail without a ladder: one mode is never found."""
    known, sampler = sampled
    if known.name != "bimodal":
        pytest.skip("one mode")
    estimate = sampler.estimate()
    samples = estimate.samples.take()
    x, up = samples.cvs[:, 0], fast_of(known.name, samples.positions) > 0
    z = []
    for low, high in ((-0.9, -0.5), (-0.5, -0.2), (-0.2, 0.2), (0.2, 0.5), (0.5, 0.9)):
        inside = (x >= low) & (x < high)
        share, error = estimate.average(up.astype(float), np.where(inside, 0.0, -np.inf))
        density = known.density()
        slow = (known.slow >= low) & (known.slow < high)
        exact = density[slow][:, known.fast > 0].sum() / density[slow].sum()
        z.append((share - exact) / error)
    assert np.abs(z).max() < 4  # the largest of five; with other seeds a mode is missing in windows, which are named
    assert np.sqrt(np.mean(np.square(z))) < 2
