"""What a run warns of at its end, and what it keeps to itself."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import openmm_sgm as sgm
from openmm_sgm import doubts
from openmm_sgm.doubts import left_out, listed, mistrusted, warn_of
from openmm_sgm.hidden import Disagreement, HiddenStates, Observable, told_apart


def disagreement(separate: bool) -> HiddenStates:
    one = Disagreement(3, 4, "torsion ALA2-N ALA2-CA", separate, 1.0, (1.0, -1.0), (9.0, 9.0), 0.1, 1e-6, None)
    return HiddenStates((one,), np.array([[3, 4]]), ())


NOTHING = HiddenStates((), np.array([[3, 4]]), ())


def told(monkeypatch: pytest.MonkeyPatch, acceptance: float, hidden: HiddenStates, left: list[int]) -> list[Any]:
    """Return the warnings of a run with that acceptance in all of eight windows, and windows that the budget left."""
    campaign = SimpleNamespace(acceptance=np.full(8, acceptance), describe=lambda w: f"tau = {w}°")
    monkeypatch.setattr(doubts, "unreached", lambda campaign: ([], left))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of(campaign, hidden, ())  # type: ignore[arg-type]
    return caught


def test_a_good_run_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, 0.5, NOTHING, []) == []


def test_a_generator_that_cannot_be_trusted_is_the_cause_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that hold copies of one frame differ in anything: that is no state of theirs."""
    (only,) = told(monkeypatch, 0.01, disagreement(separate=False), [])
    assert "the generator cannot be trusted for this molecule at this budget: 1% of its" in str(only.message)
    assert "more force evaluations" in str(only.message)
    assert not issubclass(only.category, sgm.HiddenStateWarning)


def test_disjoint_states_are_told_whatever_the_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    for acceptance, count in ((0.01, 2), (0.5, 1)):
        caught = told(monkeypatch, acceptance, disagreement(separate=True), [])
        assert len(caught) == count
        assert issubclass(caught[-1].category, sgm.HiddenStateWarning)
        assert "hold different states: at tau = 3° and tau = 4°" in str(caught[-1].message)


def test_windows_that_differ_are_told_of_a_good_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = told(monkeypatch, 0.5, disagreement(separate=False), [])
    assert "differ where they should agree" in str(only.message)


def test_windows_that_the_budget_left_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = told(monkeypatch, 0.5, NOTHING, list(range(10, 18)))
    assert "the budget ended before tau = 10°; tau = 11°" in str(only.message)
    assert "tau = 15° and 2 more could be visited" in str(only.message)


def test_what_was_never_offered_does_not_count() -> None:
    assert mistrusted(np.array([np.nan, 0.01, 0.02]))
    assert not mistrusted(np.array([np.nan, 0.2, 0.01, 0.3]))
    assert not mistrusted(np.full(3, np.nan))


def test_left_out_windows_in_words() -> None:
    campaign: Any = SimpleNamespace(grid=SimpleNamespace(centers=np.zeros((36, 1))), walkers={0: None, 1: None})
    assert left_out(campaign, []) == ""
    assert left_out(campaign, ["tau = 5°"]) == (
        "the surface says nothing of 1 of 36 windows (2 were visited): tau = 5°"
    )
    assert listed(["a", "b", "c"], most=2) == "a; b and 1 more"


def test_rotors_that_a_symmetry_folds_are_no_hidden_states() -> None:
    values = np.zeros(3)
    methyl, chi = Observable("torsion A B", values, 2 * np.pi / 3), Observable("torsion C D", values, 2 * np.pi)
    energy, handedness = Observable("potential energy", values), Observable("handedness of C", values, 2 * np.pi)
    assert told_apart([methyl, chi, energy, handedness]) == [chi, energy, handedness]
