"""The generator's absolute free energies of harmonic windows against the closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import CENTERS, EXACT, draws

from openmm_sgm.importance import (
    Draws,
    effective_sample_size,
    effective_weights,
    generator_free_energies,
    resample_draws,
    resampled_free_energies,
)

N = len(CENTERS)


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


def test_free_energies_match_the_closed_form_within_their_errors() -> None:
    """Absolute up to one constant, without overlap. Broken on purpose: weights of another force constant are off."""
    rng = np.random.default_rng(1)
    f, error = generator_free_energies([draws(500, rng), draws(1000, rng, stretch=1.5)], N)
    z = (centred(f) - centred(EXACT)) / error
    assert np.abs(z).max() < 4
    assert np.sqrt(np.mean(z**2)) > 0.2
    wrong, error = generator_free_energies([draws(1000, rng, bias_scale=0.8)], N)
    assert np.abs((centred(wrong) - centred(EXACT)) / error).max() > 8


def test_errors_are_those_of_repetition() -> None:
    rng = np.random.default_rng(2)
    results = [generator_free_energies([draws(200, rng), draws(100, rng, stretch=2.0)], N) for _ in range(200)]
    spread = np.std([f for f, _ in results], axis=0)
    reported = np.mean([error for _, error in results], axis=0)
    np.testing.assert_allclose(spread / reported, 1, atol=0.25)


def test_bootstrap_agrees_with_the_error() -> None:
    rounds = [draws(300, np.random.default_rng(3), stretch=1.6)]
    counts = [resample_draws(rounds[0], 300, np.random.default_rng(4))]
    replicas = resampled_free_energies(rounds, counts, N)
    _, error = generator_free_energies(rounds, N)
    np.testing.assert_allclose(replicas.std(axis=0) / error, 1, atol=0.3)


def test_draws_without_weight_count() -> None:
    """Half of the draws have weight zero and are not among the frames: F rises by log 2."""
    few = draws(400, np.random.default_rng(5))
    f, _ = generator_free_energies([few], N)
    with_zeros, _ = generator_free_energies([Draws(few.frames, 2 * few.drawn)], N)
    np.testing.assert_allclose(with_zeros - f, np.log(2), atol=1e-12)
    counts = resample_draws(Draws(few.frames, 2 * few.drawn), 50, np.random.default_rng(6))
    assert counts.sum(axis=0).mean() == pytest.approx(len(few.frames), rel=0.05)


def test_too_few_effective_draws_give_no_number() -> None:
    good = draws(50, np.random.default_rng(7))
    log_weights = good.frames.log_weights.copy()
    rows = np.flatnonzero(good.frames.windows == 2)
    log_weights[rows[0]] += 50  # one draw carries everything
    f, error = generator_free_energies([Draws(replace(good.frames, log_weights=log_weights), good.drawn)], N)
    assert np.isnan(f[2])
    assert np.isnan(error[2])
    assert np.isfinite(np.delete(f, 2)).all()


def test_effective_sample_size() -> None:
    assert effective_sample_size(np.zeros(7)) == pytest.approx(1)
    assert effective_sample_size(np.array([0.0, -np.inf, -np.inf, -np.inf])) == pytest.approx(0.25)
    assert effective_sample_size(np.array([1000.0, 1000.0, -np.inf, -np.inf])) == pytest.approx(0.5)
    assert effective_sample_size(np.full(4, -np.inf)) == 0
    assert effective_sample_size(np.zeros(0)) == 0


def test_effective_weights_add_up_to_the_effective_number() -> None:
    some = draws(300, np.random.default_rng(8), stretch=2.0).frames
    weights = effective_weights(some)
    for window in range(N):
        rows = some.windows == window
        expected = effective_sample_size(some.log_weights[rows]) * rows.sum()
        assert weights[rows].sum() == pytest.approx(expected)
