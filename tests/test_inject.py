"""Metropolis moves against the exact stationary distribution, importance weights, refusals, the ledger."""

from __future__ import annotations

import csv
from dataclasses import astuple, fields
from pathlib import Path

import numpy as np
import pytest

from openmm_sgm.generator import Samples
from openmm_sgm.inject import Ledger, LedgerRow, impossible, log_importance, metropolis_chain
from openmm_sgm.system import MolecularSystem

# The chain on a space of six states

TARGET = np.array([0.02, 0.05, 0.08, 0.15, 0.3, 0.4])
PROPOSAL = np.array([0.3, 0.1, 0.05, 0.25, 0.1, 0.2])
LOG_WEIGHTS = np.log(TARGET / PROPOSAL) + 17.0
"""Up to a constant, which must not matter."""
STEPS = 100_000
STANDARD_ERRORS = 4.0


def transition_matrix(log_weights: np.ndarray) -> np.ndarray:
    """Return P[i, j] = q_j min(1, w_j/w_i) for j ≠ i, the rest on the diagonal (Hastings 1970)."""
    matrix = PROPOSAL * np.exp(np.minimum(0, log_weights[None] - log_weights[:, None]))
    np.fill_diagonal(matrix, 0)
    return matrix + np.diag(1 - matrix.sum(axis=1))


def run_chain(log_weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the chain from a draw of the target; returns (visited states with the start, proposals, accepted)."""
    rng = np.random.default_rng(seed)
    start = int(rng.choice(6, p=TARGET))
    proposals = rng.choice(6, size=STEPS, p=PROPOSAL)
    accepted, state = metropolis_chain(float(log_weights[start]), log_weights[proposals], rng)
    assert accepted.dtype == bool
    assert state.dtype == np.int64
    return np.concatenate([[start], np.where(state >= 0, proposals[state], start)]), proposals, accepted


def stationary_excess(visited: np.ndarray) -> float:
    """Return χ² of visits against the target, in standard deviations of χ² above its mean of five.

    The covariance of the visits is that of the exact chain, correlations in time included:
    Σ = diag(π) Z + (diag(π) Z)ᵀ − diag(π) − π πᵀ, Z = (1 − P + 1πᵀ)⁻¹ (Kemeny and Snell 1960, theorem 4.6.1).
    """
    visits = np.bincount(visited[1:], minlength=6)
    fundamental = np.linalg.inv(np.eye(6) - transition_matrix(LOG_WEIGHTS) + TARGET)
    half = TARGET[:, None] * fundamental
    covariance = half + half.T - np.diag(TARGET) - np.outer(TARGET, TARGET)
    excess = visits / STEPS - TARGET
    chi_square = STEPS * excess @ np.linalg.pinv(covariance) @ excess
    return float((chi_square - 5) / np.sqrt(2 * 5))


def test_target_is_stationary_for_the_exact_matrix() -> None:
    np.testing.assert_allclose(TARGET @ transition_matrix(LOG_WEIGHTS), TARGET, rtol=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chain_samples_the_target(seed: int) -> None:
    visited, _, _ = run_chain(LOG_WEIGHTS, seed)
    assert abs(stationary_excess(visited)) < STANDARD_ERRORS


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(6), -LOG_WEIGHTS, 0.9 * LOG_WEIGHTS, np.log(TARGET), LOG_WEIGHTS - 0.1 * (TARGET == 0.4)],
    ids=["ignored", "turned over", "nine tenths", "without the density", "a tenth of kT off"],
)
def test_a_wrong_weight_is_noticed(wrong: np.ndarray) -> None:
    visited, _, _ = run_chain(wrong, 1)
    assert stationary_excess(visited) > 3 * STANDARD_ERRORS


def test_chain_makes_the_steps_of_the_exact_matrix() -> None:
    """Transitions from each state are independent draws: no correlations to allow for."""
    visited, _, _ = run_chain(LOG_WEIGHTS, 4)
    matrix = transition_matrix(LOG_WEIGHTS)
    counts = np.zeros((6, 6))
    np.add.at(counts, (visited[:-1], visited[1:]), 1)
    expected = counts.sum(axis=1, keepdims=True) * matrix
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    freedom = possible.sum() - 6
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert abs(chi_square - freedom) < STANDARD_ERRORS * np.sqrt(2 * freedom)


def test_acceptance_is_the_expected_one() -> None:
    _, proposals, accepted = run_chain(LOG_WEIGHTS, 5)
    ratio = np.minimum(1, np.exp(LOG_WEIGHTS[None] - LOG_WEIGHTS[:, None]))
    # the outcome depends on the state and the proposal alone; visits are correlated, so batches give the error
    batches = accepted.reshape(100, -1).mean(axis=1)
    error = batches.std(ddof=1) / 10
    assert error < 0.005
    assert abs(accepted.mean() - TARGET @ ratio @ PROPOSAL) < STANDARD_ERRORS * error
    best = int(LOG_WEIGHTS.argmax())
    assert accepted[proposals == best].all(), "a proposal of the largest weight is always accepted"


def test_one_test_keeps_exact_samples_exact() -> None:
    """Invariance: independent chains that start in the target are in it after one test and after five."""
    rng = np.random.default_rng(6)
    chains = 4000
    ends = np.zeros((2, chains), dtype=int)
    for k in range(chains):
        start = int(rng.choice(6, p=TARGET))
        proposals = rng.choice(6, size=5, p=PROPOSAL)
        _, state = metropolis_chain(float(LOG_WEIGHTS[start]), LOG_WEIGHTS[proposals], rng)
        ends[:, k] = [proposals[s] if s >= 0 else start for s in (state[0], state[4])]
    for end in ends:
        chi_square = ((np.bincount(end, minlength=6) - chains * TARGET) ** 2 / (chains * TARGET)).sum()
        assert abs(chi_square - 5) < STANDARD_ERRORS * np.sqrt(2 * 5)


def test_state_is_the_last_accepted_proposal() -> None:
    rng = np.random.default_rng(7)
    accepted, state = metropolis_chain(0.0, rng.normal(scale=2, size=500), rng)
    assert 50 < accepted.sum() < 450
    holds = -1
    for k in range(500):
        holds = k if accepted[k] else holds
        assert state[k] == holds


def test_chain_is_a_function_of_its_random_numbers() -> None:
    proposals = np.random.default_rng(8).normal(size=200)
    one, two, other = (metropolis_chain(0.0, proposals, np.random.default_rng(seed))[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    accepted, state = metropolis_chain(0.0, np.zeros(0), np.random.default_rng(1))
    assert accepted.shape == state.shape == (0,)


def test_a_common_constant_does_not_matter() -> None:
    """Logarithms are compared: weights of 1e±4000 make no difference, and nothing overflows."""
    proposals = np.round(np.random.default_rng(9).normal(size=300) * 64) / 64
    results = [metropolis_chain(c, proposals + c, np.random.default_rng(1)) for c in (0.0, 8192.0, -8192.0)]
    with np.errstate(all="raise"):
        metropolis_chain(-8192.0, np.array([8192.0, -8192.0, 0.0]), np.random.default_rng(1))
    for accepted, state in results[1:]:
        np.testing.assert_array_equal(accepted, results[0][0])
        np.testing.assert_array_equal(state, results[0][1])


@pytest.mark.parametrize("current", [0.0, 1e6, -np.inf], ids=str)
def test_impossible_proposals_are_never_accepted(current: float) -> None:
    proposals = np.tile([-np.inf, np.nan], 500)
    accepted, state = metropolis_chain(current, proposals, np.random.default_rng(10))
    assert not accepted.any()
    assert (state == -1).all()


def test_impossible_proposals_between_others_change_nothing() -> None:
    rng = np.random.default_rng(11)
    good = rng.normal(size=400)
    mixed = np.where(rng.random(400) < 0.5, good, np.where(rng.random(400) < 0.5, np.nan, -np.inf))
    accepted, state = metropolis_chain(0.0, mixed, np.random.default_rng(12))
    assert accepted.sum() > 20
    assert np.isfinite(mixed[accepted]).all()
    assert np.isfinite(mixed[state[state >= 0]]).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar subtract")  # inf − inf
def test_a_start_outside_the_models_support_is_never_left() -> None:
    proposals = np.concatenate([np.full(300, 700.0), [1e300, np.inf, np.nan, -np.inf], np.zeros(300)])
    accepted, state = metropolis_chain(np.inf, proposals, np.random.default_rng(13))
    assert not accepted.any()
    assert (state == -1).all()


def test_a_start_of_weight_zero_is_left_at_once() -> None:
    accepted, state = metropolis_chain(-np.inf, np.array([-np.inf, -900.0]), np.random.default_rng(14))
    assert accepted.tolist() == [False, True]
    assert state.tolist() == [-1, 1]


# Importance weights


def test_log_importance_is_the_formula() -> None:
    rng = np.random.default_rng(15)
    energies, bias, factor, log_q = rng.normal(scale=30, size=(4, 50))
    expected = [-0.4 * u - b + f - q for u, b, f, q in zip(energies, bias, factor, log_q, strict=True)]
    np.testing.assert_allclose(log_importance(energies, bias, factor, log_q, 0.4), expected, rtol=1e-12)


def test_log_importance_recovers_a_known_ratio() -> None:
    """For a harmonic oscillator in an umbrella at 0 and a normal density, log[π/q] is known but for its constant."""
    x = np.linspace(-2, 2, 41)
    beta, stiffness, reduced_umbrella, variance = 0.4, 20.0, 3.0, 0.11
    log_q = -0.5 * x**2 / variance - 0.5 * np.log(2 * np.pi * variance)
    found = log_importance(0.5 * stiffness * x**2, 0.5 * reduced_umbrella * x**2, np.zeros(41), log_q, beta)
    expected = -0.5 * (beta * stiffness + reduced_umbrella - 1 / variance) * x**2
    np.testing.assert_allclose(found - found[20], expected, atol=1e-10)


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")  # inf − inf, in a branch not taken
@pytest.mark.parametrize(
    ("energy", "log_density", "expected"),
    [
        (10.0, -3.0, -4.0 - 2.0 + 0.5 + 3.0),
        (10.0, -np.inf, np.inf),
        (10.0, np.nan, np.inf),
        (np.nan, -3.0, -np.inf),
        (np.inf, -3.0, -np.inf),
        (-np.inf, -3.0, -np.inf),
        (np.nan, -np.inf, -np.inf),
        (np.inf, np.nan, -np.inf),
    ],
)
def test_special_cases_of_log_importance(energy: float, log_density: float, expected: float) -> None:
    arguments = (np.array([v]) for v in (energy, 2.0, 0.5, log_density))
    (found,) = log_importance(*arguments, beta=0.4)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("which", [1, 2])
def test_a_bias_or_factor_that_is_not_finite_weighs_nothing(which: int, value: float) -> None:
    columns = [np.array([1.0, 1.0]) for _ in range(4)]
    columns[which][0] = value
    found = log_importance(*columns, beta=1.0)
    assert np.isneginf(found[0])
    assert found[1] == -2.0


# Refusals


def test_reasons_why_a_configuration_is_impossible(alanine: MolecularSystem) -> None:
    stereo = alanine.stereo
    x = np.repeat(alanine.positions[None], 9, axis=0)
    x[[4, 6, 8]] *= -1
    valid = np.array([True, True, True, True, True, False, False, True, True])
    energies = np.array([-100.0, np.nan, np.inf, -np.inf, 0.0, 0.0, np.nan, 1e12, np.nan])
    samples = Samples(x, np.zeros(9), valid, np.zeros(9, dtype=np.int64))
    changed = "the centre ACE1-CH3 has changed its handedness"
    reasons = impossible(samples, energies, stereo)
    assert reasons.shape == (9,)
    assert reasons.tolist() == [
        "",
        "energy not finite",
        "energy not finite",
        "energy not finite",
        changed,
        "outside the representation",
        "outside the representation",
        "",
        changed,
    ]
    none = Samples(x[:0], np.zeros(0), np.zeros(0, bool), np.zeros(0, int))
    assert impossible(none, np.zeros(0), stereo).size == 0


# The ledger


NAMES = ("phi", "end_to_end")


def filled_ledger() -> Ledger:
    """Return a ledger of two calls, five rows and two, among them values that are not finite."""
    ledger = Ledger(NAMES)
    rng = np.random.default_rng(19)
    ledger.add(
        0,
        300.0,
        "trial",
        windows=np.array([3, 3, 1, 0, 0]),
        labels=rng.normal(size=(5, 2)),
        energies=np.array([-123.456, np.nan, np.inf, 0.0, 1.5e9]),
        log_density=np.array([101.25, 3.0, -np.inf, 0.0, np.nan]),
        log_weights=np.array([-2.5, -np.inf, np.inf, 0.0, np.nan]),
        verdicts=iter(["accepted", "energy not finite", "outside, of the “representation”", "rejected", ""]),
    )
    ledger.add(
        2, 450.0, "weights", np.array([7, 8]), rng.normal(size=(2, 2)), *rng.normal(size=(3, 2)), ["accepted"] * 2
    )
    return ledger


def test_rows_are_the_rows_added() -> None:
    ledger = filled_ledger()
    assert len(ledger.rows) == 7
    assert [row.number for row in ledger.rows] == list(range(7))
    assert [row.round for row in ledger.rows] == [0] * 5 + [2] * 2
    assert [row.purpose for row in ledger.rows] == ["trial"] * 5 + ["weights"] * 2
    assert [row.window for row in ledger.rows] == [3, 3, 1, 0, 0, 7, 8]
    assert {type(value) for row in ledger.rows for value in astuple(row)} == {int, str, float, tuple}
    first = ledger.rows[0]
    assert (first.energy, first.log_density, first.log_weight, first.verdict) == (-123.456, 101.25, -2.5, "accepted")


def test_columns_of_different_lengths_are_refused() -> None:
    ledger = Ledger(("phi",))
    with pytest.raises(ValueError, match="columns of 2, 2, 2, 2, 2, 1 rows"):
        ledger.add(0, 300.0, "trial", np.zeros(2, int), np.zeros((2, 1)), *np.zeros((3, 2)), verdicts=["accepted"])


def test_ledger_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    filled_ledger().write(path)
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.csv"], "the temporary file is gone"
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        *("number", "round", "temperature_k", "window", "label_phi", "label_end_to_end"),
        *("purpose", "energy_kj_mol", "log_density", "log_weight", "verdict"),
    ]
    assert len(rows) == 7
    assert [len(row) for row in rows] == [11] * 7
    # what is not finite is empty, and 0 is not
    assert [row[7:10] for row in rows[:5]] == [
        ["-123.456", "101.25", "-2.5"],
        ["", "3", ""],
        ["", "", ""],
        ["0", "0", "0"],
        ["1.5e+09", "", ""],
    ]
    text = path.read_text().lower()
    assert "nan" not in text
    assert "inf" not in text.replace("infinite", "")


def test_ledger_comes_back(tmp_path: Path) -> None:
    ledger = filled_ledger()
    ledger.write(tmp_path / "one.csv")
    again = Ledger.read(tmp_path / "one.csv", NAMES)
    assert again.cv_names == NAMES
    assert len(again.rows) == len(ledger.rows)
    for read, row in zip(again.rows, ledger.rows, strict=True):
        for field in fields(LedgerRow):
            found, given = getattr(read, field.name), getattr(row, field.name)
            assert type(found) is type(given)
            if field.name == "label":
                assert found == pytest.approx(given, abs=1e-6)
            elif isinstance(given, float) and np.isfinite(given):
                assert found == pytest.approx(given, rel=1e-5)
            elif isinstance(given, float):
                assert np.isnan(found)
            else:
                assert found == given
    again.write(tmp_path / "two.csv")
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_a_ledger_that_was_read_goes_on(tmp_path: Path) -> None:
    filled_ledger().write(tmp_path / "ledger.csv")
    ledger = Ledger.read(tmp_path / "ledger.csv", NAMES)
    ledger.add(3, 300.0, "trial", np.array([1]), np.zeros((1, 2)), *np.zeros((3, 1)), ["rejected"])
    assert ledger.rows[-1].number == 7
    ledger.write(tmp_path / "ledger.csv")
    assert len(Ledger.read(tmp_path / "ledger.csv", NAMES).rows) == 8


def test_an_empty_ledger(tmp_path: Path) -> None:
    Ledger(NAMES).write(tmp_path / "ledger.csv")
    assert Ledger.read(tmp_path / "ledger.csv", NAMES).rows == []


def test_a_ledger_of_other_cvs_is_refused(tmp_path: Path) -> None:
    filled_ledger().write(tmp_path / "ledger.csv")
    with pytest.raises(KeyError, match="label_psi"):
        Ledger.read(tmp_path / "ledger.csv", ("phi", "psi"))


def test_a_write_that_fails_leaves_the_old_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.csv"
    ledger = filled_ledger()
    ledger.write(path)
    before = path.read_bytes()
    written = []

    def full_disk(value: float) -> str:
        written.append(value)
        if len(written) > 4:
            raise OSError("no space left on device")
        return ""

    monkeypatch.setattr("openmm_sgm.inject._text", full_disk)
    with pytest.raises(OSError, match="no space left"):
        ledger.write(path)
    assert path.read_bytes() == before
