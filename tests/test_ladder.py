"""A temperature ladder: a molecule whose second well no CV leads to, with a closed form for its share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmm
import pytest
from analytic import TEMPERATURE_K, triatomic
from scipy.integrate import quad

import openmm_sgm as sgm
from openmm_sgm.frames import rows_by_window
from openmm_sgm.runfolder import load_state, save_state
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import thermal_energy

MIDDLE_RAD, HALF_RAD, BARRIER, TILT = 1.75, 0.5, 30.0, 3.0
"""The angle has wells at the middle ± 0.5 rad, 30 kJ/mol (12 kT) below the barrier, the wider one 3 kJ/mol higher."""
LADDER = (450.0, 700.0, 1100.0)
BUDGET = 40_000
SMALL = {
    "training": sgm.TrainingOptions(steps=600, batch_size=128, rows=4000),
    "network": sgm.NetworkOptions(width=48, hidden=64, conditioning=32),
    "exploration_training_steps": 300,
    "rounds": 2,
    "density_error": 0.05,
}


def bistable() -> MolecularSystem:
    """Return the three-atom molecule with a double well in its angle; the CV is the bond 0–1, the start the low one."""
    plain = triatomic(angle_constant=0.0)
    angle = openmm.CustomAngleForce(
        f"{BARRIER}*(((theta-{MIDDLE_RAD})/{HALF_RAD})^2-1)^2+{TILT}*(theta-{MIDDLE_RAD})/{2 * HALF_RAD}"
    )
    angle.addAngle(0, 1, 2, [])
    plain.system.addForce(angle)
    bend = np.pi - (MIDDLE_RAD - HALF_RAD)
    positions = 0.15 * np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0 + np.cos(bend), np.sin(bend), 0.0]])
    return MolecularSystem(
        "bistable", plain.topology, plain.system, positions, plain.cvs, TEMPERATURE_K, time_step_fs=1.0, bins=(28,)
    )


def exact_share() -> float:
    """Return the share of angles beyond the middle: ∫ sin θ exp(−V/kT)."""

    def density(theta: float) -> float:
        x = (theta - MIDDLE_RAD) / HALF_RAD
        return float(
            np.sin(theta) * np.exp(-(BARRIER * (x**2 - 1) ** 2 + TILT * x / 2) / thermal_energy(TEMPERATURE_K))
        )

    beyond = quad(density, MIDDLE_RAD, np.pi)[0]
    return float(beyond / (beyond + quad(density, 0, MIDDLE_RAD)[0]))


def share(sampler: sgm.ScoreSampler) -> tuple[float, float]:
    """Return the share of the last round's weighted draws beyond the middle, and its standard error.

    Bond and angle are independent, so the share is the same in every window, whatever the window's weight.
    """
    assert sampler.campaign is not None
    frames = sampler.campaign.rounds[-1].frames
    a, b, c = (frames.positions[:, k] for k in range(3))
    u, v = a - b, c - b
    angle = np.arccos((u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1))
    inside, w = angle > MIDDLE_RAD, np.empty(len(frames))
    for rows in rows_by_window(frames.windows):
        w[rows] = np.exp(frames.log_weights[rows] - np.logaddexp.reduce(frames.log_weights[rows])) * len(rows)
    p = float((w * inside).sum() / w.sum())
    return p, float(np.sqrt((w**2 * (inside - p) ** 2).sum()) / w.sum())


def finished(ladder: tuple[float, ...]) -> sgm.ScoreSampler:
    sampler = sgm.ScoreSampler(bistable(), seed=3, workers=0, options=sgm.SamplerOptions(ladder=ladder, **SMALL))
    sampler.run(BUDGET)
    return sampler


@pytest.fixture(scope="module")
def sampler() -> sgm.ScoreSampler:
    return finished(LADDER)


def test_a_well_behind_a_hidden_barrier_has_its_share(sampler: sgm.ScoreSampler) -> None:
    """Without the ladder the well is not found; with it, its share is the closed form's.

    Broken on purpose: with β of a temperature 1.3 times too high it is not.
    """
    known = exact_share()
    assert 0.1 < known < 0.4
    found, error = share(sampler)
    assert error < 0.03
    assert abs(found - known) < 4 * error
    assert share(finished(()))[0] == 0.0


def test_hot_configurations_are_in_no_estimate(sampler: sgm.ScoreSampler) -> None:
    campaign = sampler.campaign
    assert campaign is not None
    assert [level.molecule.temperature_k for level in campaign.hotter] == list(LADDER)
    assert all(level.chain for level in campaign.hotter)
    hot = np.concatenate([part.energies for level in campaign.hotter for part in level.chain])
    assert not np.isin(sampler.estimate().samples.column("energies"), hot).any()
    assert {row.temperature_k for row in campaign.ledger.rows} >= {TEMPERATURE_K, *LADDER[:-1]}
    assert campaign.cost.total <= BUDGET


def test_a_saved_ladder_comes_back(sampler: sgm.ScoreSampler, tmp_path: Path) -> None:
    save_state(tmp_path, sampler)
    again = sgm.ScoreSampler(bistable(), seed=3, workers=0, options=sgm.SamplerOptions(ladder=LADDER, **SMALL))
    load_state(tmp_path, again)
    assert again.campaign is not None
    assert sampler.campaign is not None
    for new, old in zip(again.campaign.hotter, sampler.campaign.hotter, strict=True):
        assert sorted(new.walkers) == sorted(old.walkers)
        np.testing.assert_array_equal(new.free_energies, old.free_energies)
        assert sum(len(part) for part in new.chain) == sum(len(part) for part in old.chain)
        assert new.rng().integers(2**62) == old.rng().integers(2**62)
    assert share(again) == share(sampler)


@pytest.mark.parametrize("ladder", [(300.0, 500.0), (200.0,)])
def test_a_ladder_that_does_not_rise_above_the_system_is_refused(ladder: tuple[float, ...]) -> None:
    with pytest.raises(sgm.InputError, match="must lie above 300 K"):
        sgm.ScoreSampler(bistable(), options=sgm.SamplerOptions(ladder=ladder))


@pytest.mark.parametrize("ladder", [(500.0, 400.0), (-1.0,), (400.0, 400.0)])
def test_temperatures_must_ascend(ladder: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        sgm.SamplerOptions(ladder=ladder)
