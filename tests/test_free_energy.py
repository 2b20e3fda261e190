"""Surfaces and their errors, by each of the three estimators, against a harmonic well's closed form."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import CENTERS, EDGES, EXACT, GRID, KT, MEANS, STIFFNESS, WIDTH, chain, draws, exact_surface

from openmm_sgm.frames import GENERATED, INJECTED, MD, Frames
from openmm_sgm.free_energy import Estimate, Method, Surface, consistency, estimate, simulated_minus_generated
from openmm_sgm.importance import Draws, Weights
from openmm_sgm.mbar import mbar_free_energies
from openmm_sgm.units import SamplingError

METHODS: tuple[Method, ...] = ("combined", "mbar", "generator")


def estimated(method: Method, seed: int, n: int = 300, bias_scale: float = 1.0, memory: float = 0.5) -> Estimate:
    """Return an estimate from fresh samples."""
    rng = np.random.default_rng(seed)
    samples = chain(n, rng, memory)
    rounds = [draws(n // 2, rng, bias_scale=bias_scale), draws(n, rng, stretch=1.5, bias_scale=bias_scale)]
    return estimate(
        None if method == "generator" else samples,
        [] if method == "mbar" else rounds,
        GRID,
        EDGES,
        ["x"],
        [""],
        method=method,
        mbar=mbar_free_energies(samples, GRID)[0] if method == "mbar" else None,
        n_bootstrap=200,
        rng=rng,
    )


def aligned(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


@pytest.mark.parametrize("method", METHODS)
def test_surface_and_windows_match_the_closed_form(method: Method) -> None:
    result = estimated(method, seed=1)
    surface = result.surface
    assert np.isfinite(surface.free_energy).all()
    assert surface.free_energy.min() == 0
    z = (aligned(surface.free_energy) - aligned(exact_surface())) / surface.std_error
    assert np.abs(z).max() < 4
    z = (aligned(result.free_energies) - aligned(EXACT)) / result.std_errors
    assert np.abs(z).max() < 4
    assert np.logaddexp.reduce(result.log_weights) == pytest.approx(0, abs=1e-9)
    x = result.samples.take().cvs[:, 0]
    variance = (np.exp(result.log_weights) * x**2).sum()
    mean, error = result.average(np.stack([x, x**2], axis=1))
    assert mean[1] == pytest.approx(variance)
    # of this seed's samples ⟨x²⟩ is 4.2 standard errors off; over 30 seeds the root mean square is 1.2
    assert np.all(np.abs(mean - [0, KT / STIFFNESS]) < 4.5 * error)
    biased, error = result.average(x, -GRID.reduced_bias(result.samples.column("cvs"), GRID.centers[5]))
    assert abs(biased - MEANS[5]) < 4 * error < 0.5 * WIDTH
    assert variance == pytest.approx(KT / STIFFNESS, rel=0.25)  # the weights are those of the unbiased well


@pytest.mark.parametrize("method", ["combined", "generator"])
def test_wrong_densities_are_noticed(method: Method) -> None:
    """Broken on purpose: weights as of a softer umbrella shift the surface by many standard errors."""
    surface = estimated(method, seed=2, n=6000, bias_scale=0.8).surface
    z = (aligned(surface.free_energy) - aligned(exact_surface())) / surface.std_error
    assert np.abs(z).max() > 8


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0.5, 0.8])
@pytest.mark.parametrize("method", METHODS)
def test_reported_errors_are_those_of_repetition(method: Method, memory: float) -> None:
    """The spread over 60 independent repetitions, chains with such a correlation included, within 20 %.

    Errors a third too large or too small fail, and so do averages over windows whose resampled weights leave the
    window's factor out (tried).
    """
    results = [estimated(method, seed=100 + k, n=400, memory=memory) for k in range(60)]
    surfaces = [result.surface for result in results]
    values = np.array([surface.free_energy for surface in surfaces])
    errors = np.array([surface.std_error for surface in surfaces])
    values, errors = (v[:, np.isfinite(values).all(axis=0)] for v in (values, errors))
    assert values.shape[1] >= 9
    spread, reported = (values - values.mean(axis=1, keepdims=True)).std(axis=0, ddof=1), errors.mean(axis=0)
    ratio = np.sqrt(np.mean(spread**2) / np.mean(reported**2))
    assert 0.8 < ratio < 1.2
    averages = np.array([averages_of(result) for result in results])  # of four quantities, value and error
    ratios = averages[:, 0].std(axis=0, ddof=1) / averages[:, 1].mean(axis=0)
    assert np.all((ratios > 0.7) & (ratios < 1.4))  # each of 60 repetitions, so good to 9 %


def test_an_average_that_hangs_on_a_few_samples_has_no_error() -> None:
    result = estimated("combined", seed=4)
    x = result.samples.column("cvs")
    far = -GRID.reduced_bias(x, np.array([2.2]))
    assert np.isnan(result.average(x[:, 0], far)[1])
    assert np.isfinite(result.average(x[:, 0])[1])


def averages_of(result: Estimate) -> np.ndarray:
    """Return values and errors of the means of x and x², and of two windows' shares above their means.

    shape (2, 4)
    """
    x = result.samples.column("cvs")
    found = [result.average(np.hstack([x, x**2]))]
    for window in (2, 6):
        bias = GRID.reduced_bias(x, GRID.centers[window])
        found.append(result.average(x > MEANS[window], -bias))
    return np.hstack([np.stack(pair) for pair in found])


def injected(n: int, rng: np.random.Generator) -> Frames:
    """Return simulated frames and as many injected states."""
    simulated, states = chain(n, rng), chain(n, rng)
    return Frames.concatenate([simulated, replace(states, source=np.full(len(states), INJECTED, dtype=np.int8))])


def distrusted(rng: np.random.Generator, windows: list[int]) -> Draws:
    """Return draws of which some windows' have a heavy tail of nonsense weights."""
    good = draws(200, rng)
    log_weights = good.frames.log_weights.copy()
    rows = np.isin(good.frames.windows, windows)
    log_weights[rows] -= 3 * np.log(rng.random(rows.sum()))
    return Draws(replace(good.frames, log_weights=log_weights), good.drawn)


def test_a_window_s_generated_configurations_count_once() -> None:
    """As draws where their weights can be trusted, as states of the chain where they cannot, and never as both."""
    rng = np.random.default_rng(5)
    part = distrusted(rng, [3, 4])
    result = estimate(injected(100, rng), [part], GRID, EDGES, ["x"], [""], n_bootstrap=40, rng=rng)
    used = result.samples.take()
    for window in range(len(CENTERS)):
        sources = set(used.source[used.windows == window].tolist())
        assert sources == ({MD, INJECTED} if window in (3, 4) else {MD, GENERATED})
    drawn = used[used.source == GENERATED]
    assert len(np.unique(drawn.energies)) == len(drawn)
    z = (aligned(result.surface.free_energy) - aligned(exact_surface())) / result.surface.std_error
    assert np.abs(z).max() < 4


def test_without_any_weight_to_be_trusted_the_chains_remain() -> None:
    rng = np.random.default_rng(6)
    part = distrusted(rng, list(range(len(CENTERS))))
    result = estimate(injected(200, rng), [part], GRID, EDGES, ["x"], [""], n_bootstrap=40, rng=rng)
    assert not (result.samples.column("source") == GENERATED).any()
    z = (aligned(result.surface.free_energy) - aligned(exact_surface())) / result.surface.std_error
    assert np.abs(z).max() < 4
    with pytest.raises(SamplingError, match="trusted"):
        estimate(None, [part], GRID, EDGES, ["x"], [""], method="generator", rng=rng)


def test_windows_that_nothing_joins_are_left_out() -> None:
    """Of two groups of windows without overlap and without trusted draws the larger stays; with draws, both do."""
    rng = np.random.default_rng(7)
    apart = np.array([0, 1, 6, 7, 8])
    some = chain(200, rng, windows=apart)
    alone = estimate(some, [], GRID, EDGES, ["x"], [""], n_bootstrap=20, rng=rng)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(alone.free_energies)), [6, 7, 8])
    good = draws(200, rng)
    rows = np.isin(good.frames.windows, apart)
    both = estimate(some, [Draws(good.frames[rows], good.drawn)], GRID, EDGES, ["x"], [""], n_bootstrap=20, rng=rng)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(both.free_energies)), apart)
    z = (aligned(both.free_energies[apart]) - aligned(EXACT[apart])) / both.std_errors[apart]
    assert np.abs(z).max() < 4


@pytest.mark.parametrize("log_weight", [-20.0, -300.0, -800.0])
def test_a_draw_far_from_all_windows_empties_nothing(log_weight: float) -> None:
    rng = np.random.default_rng(8)
    good = draws(200, rng)
    far = replace(
        good.frames[:1], cvs=np.array([[9.0]]), log_weights=good.frames.log_weights.max(keepdims=True) + log_weight
    )
    part = Draws(Frames.concatenate([good.frames, far]), good.drawn)
    surface = estimate(chain(50, rng), [part], GRID, EDGES, ["x"], [""], n_bootstrap=20, rng=rng).surface
    assert np.isfinite(surface.free_energy).all()
    z = (aligned(surface.free_energy) - aligned(exact_surface())) / surface.std_error
    assert np.abs(z).max() < 4


def test_simulated_against_generated_energies() -> None:
    """No difference beyond chance; broken on purpose, weights of a law that is too wide show."""
    rng = np.random.default_rng(9)
    for wider, noticed in ((0.0, False), (0.3, True)):
        part = draws(1500, rng)
        offset = (part.frames.cvs[:, 0] - MEANS[part.frames.windows]) / WIDTH
        log_weights = part.frames.log_weights + wider * offset**2
        rounds = [Draws(replace(part.frames, log_weights=log_weights), part.drawn)]
        mean, error = simulated_minus_generated(chain(200, rng), rounds, Weights(rounds, len(CENTERS)))
        assert (abs(mean) > 4 * error) == noticed
    assert np.isnan(simulated_minus_generated(chain(5, rng), [], Weights([], len(CENTERS)))).all()


def test_combination_is_at_least_as_good_as_its_parts() -> None:
    errors = {}
    for method in METHODS:
        values = [aligned(estimated(method, seed=200 + k, n=100).surface.free_energy) for k in range(12)]
        errors[method] = np.sqrt(np.mean((np.array(values) - aligned(exact_surface())) ** 2))
    assert errors["combined"] < 1.1 * min(errors["mbar"], errors["generator"])


def test_unsampled_bins_are_empty(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    edges = (np.linspace(-4, 4, 41),)
    result = estimate(
        chain(200, rng), [draws(200, rng)], GRID, edges, ["x"], [""], method="combined", rng=rng, n_bootstrap=20
    )
    surface = result.surface
    far = np.abs(surface.centers[0]) > 2.5
    assert np.isnan(surface.free_energy[far]).all()
    np.testing.assert_array_equal(np.isnan(surface.free_energy), np.isnan(surface.std_error))
    surface.write_csv(tmp_path / "surface.csv")
    rows = list(csv.DictReader((tmp_path / "surface.csv").open(newline="")))
    assert len(rows) == 40
    assert list(rows[0]) == ["x", "free_energy_kj_mol", "std_error_kj_mol"]
    empty = np.array([row["free_energy_kj_mol"] == "" for row in rows])
    np.testing.assert_array_equal(empty, np.isnan(surface.free_energy))
    np.testing.assert_array_equal(empty, [row["std_error_kj_mol"] == "" for row in rows])
    assert min(float(row["free_energy_kj_mol"]) for row in rows if row["free_energy_kj_mol"]) == 0


def test_method_mbar_needs_its_free_energies() -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(ValueError, match="mbar_free_energies"):
        estimate(chain(10, rng), [], GRID, EDGES, ["x"], [""], method="mbar", rng=rng)


def test_consistency_is_the_aligned_difference_below_a_height() -> None:
    micro = np.array([0.0, 1.0, 2.0, 30.0, np.nan])
    macro = np.array([5.0, 6.3, 6.7, 99.0, 1.0])
    difference, rmse = consistency(micro, macro, kt=1.0, height=25.0)
    np.testing.assert_allclose(difference[:3], [0.0, -0.3, 0.3], atol=1e-12)
    assert rmse == pytest.approx(np.sqrt(0.06))
    assert np.isnan(difference[4])
    assert np.isnan(consistency(np.full(3, np.nan), np.zeros(3), 1.0)[1])


def test_error_below_a_height() -> None:
    surface = Surface(np.array([0.0, 10.0, 40.0, np.nan]), np.array([1.0, 2.0, 9.0, np.nan]), (), (), ())
    assert surface.error_below(25) == pytest.approx(np.sqrt(2.5))
    assert np.isnan(surface.error_below(-1))


def test_mdtraj_s_pi_lies_in_the_last_bin() -> None:
    """It is 3.14159274, above π: a trans torsion lay in no bin and in no basin."""
    edges = (np.linspace(-np.pi, np.pi, 37),)
    surface = Surface(np.zeros(36), np.zeros(36), edges, ("tau",), ("rad",))
    values = np.array([np.float32(np.pi), -np.float32(np.pi), 0.1, 3.15, -3.15, np.nan], dtype=float)
    assert values[0] > np.pi
    np.testing.assert_array_equal(surface.bins_of(values[:, None]), [35, 0, 18, -1, -1, -1])


# What is missing


def test_windows_that_nothing_joins_get_no_common_zero() -> None:
    """Frames of an exploration: four windows on the left, two on the right, and five widths between them.

    Before, the two sides stood on one scale that MBAR had made up, and were on one surface.
    """
    rng = np.random.default_rng(12)
    f = np.full(len(CENTERS), np.nan)
    f[[0, 1, 2, 3, 7, 8]] = 0.0
    samples = chain(60, rng, windows=np.flatnonzero(np.isfinite(f)))
    result = estimate(samples, [], GRID, EDGES, ["x"], [""], method="mbar", mbar=f, n_bootstrap=20, rng=rng)
    assert np.flatnonzero(np.isfinite(result.free_energies)).tolist() == [0, 1, 2, 3]
    right = 0.5 * (EDGES[0][1:] + EDGES[0][:-1]) > 0.5
    assert np.isnan(result.surface.free_energy[right]).all()


def test_averages_know_of_what_is_missing() -> None:
    result = estimated("combined", seed=2)
    x = result.samples.column("cvs")[:, 0]
    mean, error = result.average(x > 0)
    little = replace(result, missing=0.04)
    assert little.average(x > 0)[0] == mean
    assert little.average(x > 0)[1] == pytest.approx(np.hypot(error, 0.04))
    with pytest.warns(UserWarning, match="windows that may hold 30% of the ensemble have no estimate"):
        much = replace(result, missing=0.3).average(np.stack([x, x**2], axis=1))
    assert np.isnan(much).all()
    assert np.shape(much) == (2, 2)


def test_what_all_samples_share_has_no_error() -> None:
    """Never 1.000 ± 0.000."""
    result = estimated("combined", seed=2)
    x = result.samples.column("cvs")[:, 0]
    mean, error = result.average(np.stack([x > -10, x > 0], axis=1))
    assert mean[0] == pytest.approx(1.0)
    assert np.isnan(error[0])
    assert np.isfinite(error[1])
