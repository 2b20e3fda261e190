"""MBAR of harmonic windows against the closed form, against pymbar, and what it says of windows that do not overlap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pymbar
import pytest
from synthetic import CENTERS, EXACT, GRID, chain

from openmm_sgm.frames import Frames, rows_by_window
from openmm_sgm.mbar import (
    bias_terms,
    mbar_free_energies,
    mbar_gradient,
    overlap_matrix,
    settled_from,
    statistical_inefficiencies,
    weighted_mbar,
)

WINDOWS = np.arange(len(CENTERS))


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


def test_free_energies_match_the_closed_form_within_their_errors() -> None:
    """Broken on purpose: biases of another force constant are many standard errors off."""
    samples = chain(600, np.random.default_rng(1))
    f, error, overlap = mbar_free_energies(samples, GRID)
    z = (centred(f) - centred(EXACT)) / error
    assert np.abs(z).max() < 4
    assert np.sqrt(np.mean(z**2)) > 0.2  # errors are not so large that nothing could fail
    np.testing.assert_allclose(overlap.sum(axis=1), 1, atol=1e-9)

    softer = type(GRID)(GRID.axes, 0.8 * GRID.force_constants, GRID.periods, GRID.temperature_k)
    f, error, _ = mbar_free_energies(samples, softer)
    assert np.abs((centred(f) - centred(EXACT)) / error).max() > 8


def test_correlated_samples_are_thinned_and_have_larger_errors() -> None:
    independent = chain(800, np.random.default_rng(2))
    correlated = chain(800, np.random.default_rng(2), memory=0.9)  # g = (1 + 0.9)/(1 − 0.9) = 19
    g = statistical_inefficiencies(correlated, GRID)
    assert 10 < g.mean() < 30
    assert statistical_inefficiencies(independent, GRID).mean() < 2
    f, error, _ = mbar_free_energies(correlated, GRID)
    _, small, _ = mbar_free_energies(independent, GRID)
    assert 2 < np.median(error / small) < 8
    assert np.abs((centred(f) - centred(EXACT)) / error).max() < 4


def test_own_solution_is_pymbar_s() -> None:
    samples = chain(200, np.random.default_rng(3))
    counts = np.full(len(CENTERS), 200)
    reduced = GRID.reduced_bias(samples.cvs[None], GRID.centers[:, None])
    theirs = pymbar.MBAR(reduced, counts, solver_protocol="robust").f_k
    terms = bias_terms(samples.cvs, GRID, WINDOWS)
    ours = weighted_mbar(terms, np.ones(len(samples)), counts.astype(float))
    np.testing.assert_allclose(centred(ours), centred(theirs), atol=1e-5)
    matrix = pymbar.MBAR(reduced, counts, solver_protocol="robust").compute_overlap()["matrix"]
    ones = np.ones(len(samples))
    np.testing.assert_allclose(overlap_matrix(terms, ours, counts.astype(float), ones), matrix, atol=1e-5)


def test_a_weight_of_two_is_the_same_sample_twice() -> None:
    rng = np.random.default_rng(4)
    samples = chain(100, rng)
    weights = rng.integers(1, 4, size=len(samples)).astype(float)
    repeated = samples[np.repeat(np.arange(len(samples)), weights.astype(int))]
    solutions = []
    for frames, w in ((samples, weights), (repeated, np.ones(len(repeated)))):
        sizes = np.bincount(frames.windows, w, minlength=len(CENTERS))
        solutions.append(weighted_mbar(bias_terms(frames.cvs, GRID, WINDOWS), w, sizes))
    np.testing.assert_allclose(solutions[0], solutions[1], atol=1e-6)


def test_known_free_energies_hold_what_samples_leave_open() -> None:
    """Two groups of windows without overlap: their offset comes from the prior, what is within a group does not."""
    samples = chain(300, np.random.default_rng(5), windows=np.array([0, 1, 7, 8]))
    columns = np.array([0, 1, 7, 8])
    terms = bias_terms(samples.cvs, GRID, columns)
    sizes = np.full(4, 300.0)
    for offset in (0.0, 3.0):
        prior = EXACT[columns] + np.array([0, 0, offset, offset])
        f = weighted_mbar(terms, np.ones(len(samples)), sizes, None, prior, np.full(4, 0.1))
        between = f[2:].mean() - f[:2].mean()
        assert abs(between - (prior[2:].mean() - prior[:2].mean())) < 0.05
        assert abs((f[1] - f[0]) - (EXACT[1] - EXACT[0])) < 0.3


def test_windows_without_overlap_have_no_number() -> None:
    samples = chain(300, np.random.default_rng(6), windows=np.array([0, 5, 6, 7, 8]))
    f, error, overlap = mbar_free_energies(samples, GRID)
    assert np.isnan(f[0])
    assert np.isnan(error[0])
    assert np.isfinite(f[[5, 6, 7, 8]]).all()
    assert np.isnan(f[[1, 2, 3, 4]]).all()  # never sampled
    assert overlap.shape == (5, 5)
    assert overlap[0, 1:].max() < 0.03


def test_a_window_that_has_not_moved_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds another window's place, and would tie the two together: shown by counting it all the same."""
    sound = chain(300, np.random.default_rng(8))
    stuck = sound.windows == 8
    where = np.flatnonzero(sound.windows == 5)[0]
    rows = np.where(stuck, where, np.arange(len(sound)))
    held = replace(sound[rows], labels=sound.labels, windows=sound.windows)
    f, error, overlap = mbar_free_energies(held, GRID)
    assert np.isnan(f[8])
    assert overlap.shape == (8, 8)
    assert np.abs((centred(f[:8]) - centred(EXACT[:8])) / error[:8]).max() < 4
    monkeypatch.setattr("openmm_sgm.mbar.LEAST_SAMPLES", 0.0)
    monkeypatch.setattr("openmm_sgm.mbar.statistical_inefficiencies", lambda *_: np.ones(len(CENTERS)))
    wrong, error, _ = mbar_free_energies(held, GRID)
    assert np.nanmax(np.abs((centred(wrong) - centred(EXACT)) / error)) > 8


def test_every_sample_counts_and_not_only_those_far_apart() -> None:
    """The spread over repetitions is below that of decorrelated samples alone, and below the errors reported."""
    rng = np.random.default_rng(9)
    every, thinned, reported = [], [], []
    for _ in range(30):
        samples = chain(60, rng, memory=0.6)  # g = 4
        f, error, _ = mbar_free_energies(samples, GRID)
        apart = samples[::4]
        counts = np.bincount(apart.windows).astype(float)
        every.append(centred(f))
        thinned.append(centred(weighted_mbar(bias_terms(apart.cvs, GRID, WINDOWS), np.ones(len(apart)), counts)))
        reported.append(error)
    spread, of_thinned = (np.sqrt(np.mean(np.std(np.array(v), axis=0, ddof=1) ** 2)) for v in (every, thinned))
    assert spread < 0.95 * of_thinned
    assert 0.5 < spread / np.sqrt(np.mean(np.array(reported) ** 2)) < 1.1


def test_a_good_guess_changes_nothing_but_the_time() -> None:
    samples = chain(150, np.random.default_rng(7))
    guess = EXACT.copy()
    guess[3] = np.nan
    for start in (None, guess, np.full(len(CENTERS), np.nan)):
        f, _, _ = mbar_free_energies(samples, GRID, start)
        np.testing.assert_allclose(f, mbar_free_energies(samples, GRID)[0], atol=1e-6)


def test_short_chains_count_as_independent() -> None:
    samples = Frames.concatenate([chain(2, np.random.default_rng(8))])
    np.testing.assert_array_equal(statistical_inefficiencies(samples, GRID), 1)


def test_frames_before_equilibrium_are_left_out() -> None:
    samples = chain(200, np.random.default_rng(9))
    assert settled_from(samples, GRID).mean() > 0.85  # of chains in equilibrium little is lost
    drifting, late = samples.cvs.copy(), np.ones(len(samples), dtype=bool)
    for rows in rows_by_window(samples.windows):
        early = rows[:50]
        drifting[early, 0] += np.linspace(8, 4, 50) * samples.cvs[rows].std()
        late[early] = False
    kept = settled_from(replace(samples, cvs=drifting), GRID)
    assert kept[~late].mean() < 0.15
    assert kept[late].mean() > 0.8
    never = replace(samples, cvs=samples.cvs + np.linspace(0, 5, len(samples))[:, None])
    for rows in rows_by_window(samples.windows):  # a window that never settles keeps its second half
        assert settled_from(never, GRID)[rows[len(rows) // 2 :]].all()


@pytest.mark.parametrize("off", [2.0, -35.0, 35.0])
def test_the_solution_does_not_hang_on_the_start(off: float) -> None:
    """Chord steps from far away, held by free energies that only some windows have; a start 35 kT off is found back.

    Newton steps alone stay where the Hessian knows nothing of a window, and fail at −35 (tried).
    """
    samples = chain(200, np.random.default_rng(7))
    sizes = np.full(len(CENTERS), 200.0)
    terms = bias_terms(samples.cvs, GRID, WINDOWS)
    held = np.where(WINDOWS % 2 == 0, EXACT, np.nan)
    error = np.where(WINDOWS % 2 == 0, 0.1, np.nan)
    for prior in ((None, None), (held, error)):
        wanted = weighted_mbar(terms, np.ones(len(samples)), sizes, EXACT, *prior)
        start = EXACT.copy()
        start[4] += off
        found = weighted_mbar(terms, np.ones(len(samples)), sizes, start, *prior)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        gradient = mbar_gradient(terms, np.ones(len(samples)), sizes, found, *prior)
        assert np.abs(gradient).max() < 1e-3
