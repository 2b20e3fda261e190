"""Brownian dynamics in windows: the law and the motion in closed form, no velocities, and a run that can be resumed."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import openmm
import pytest
from conftest import REPOSITORY
from fast_slow import KT, SYSTEMS
from openmm import app, unit

import openmm_sgm as sgm
from openmm_sgm.campaign import Campaign
from openmm_sgm.engine import MDSettings
from openmm_sgm.executors import SerialExecutor
from openmm_sgm.runfolder import load_state, save_state
from openmm_sgm.simulate import Segment, run_segments

MASS, FRICTION, STEP_PS, SPRING = 10.0, 10.0, 0.01, 400.0
TINY = sgm.SamplerOptions(
    training=sgm.TrainingOptions(steps=600, batch_size=256, rows=4000),
    network=sgm.NetworkOptions(width=32, hidden=32, conditioning=16),
    exploration_training_steps=200,
    rounds=2,
)


def oscillator(integrator: str = "brownian") -> MDSettings:
    system, well = openmm.System(), openmm.CustomExternalForce(f"{SPRING / 2}*(x^2+y^2+z^2)")
    well.addParticle(system.addParticle(MASS), [])
    system.addForce(well)
    umbrella = openmm.CustomExternalForce("0.5*b_force_constant*(x-b_center)^2")
    umbrella.addGlobalParameter("b_center", 0.0)
    umbrella.addGlobalParameter("b_force_constant", 0.0)
    umbrella.addParticle(0, [])
    umbrella.setForceGroup(1)
    system.addForce(umbrella)
    xml = openmm.XmlSerializer.serialize(system)
    return MDSettings(xml, 1, ("b",), 300.0, 1000 * STEP_PS, FRICTION, "Reference", {}, integrator)  # type: ignore[arg-type]


def test_a_window_has_the_law_and_the_motion_of_brownian_dynamics() -> None:
    """x' = (1 − a) x + noise of variance 2kT dt/mγ, a = k dt/mγ: mean, variance kT/k / (1 − a/2), steps of variance
    2 a kT/k / (1 − a/2). Seen to fail with the Langevin middle integrator and, in the steps, with γ off by 1.2."""
    n, constant, center = 40_000, 200.0, 0.2
    segment = Segment(
        0, np.zeros((1, 3)), None, np.array([center]), np.array([constant]), None, 0, 500, n, 1, 3
    )  # fmt: skip
    (result,) = run_segments(oscillator(), [segment], SerialExecutor(), 1)
    assert result.failure is None
    assert result.final_velocities is None
    assert result.force_evaluations == n + 500 + n + 2  # a frame's energy each, two checks, no draw of velocities
    x = result.positions[:, 0]
    for axis, k, mean in ((0, SPRING + constant, constant * center / (SPRING + constant)), (1, SPRING, 0.0)):
        a = k * STEP_PS / (MASS * FRICTION)
        variance = KT / k / (1 - a / 2)
        independent = n * a / 2  # the correlation is (1 − a)^t; that of squares (1 − a)^2t
        assert abs(x[:, axis].mean() - mean) < 4 * np.sqrt(variance / independent)
        assert np.var(x[:, axis]) == pytest.approx(variance, rel=4 * np.sqrt(1 / independent))
        assert np.var(np.diff(x[:, axis])) == pytest.approx(2 * a * variance, rel=4 * np.sqrt(2 / n))


def test_the_integrator_is_named_in_system_toml_and_read_from_a_simulation(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REPOSITORY / "systems" / "half_moon", tmp_path / "half_moon"))
    assert sgm.load_system(folder).integrator == "langevin_middle"
    table = (folder / "system.toml").read_text()
    (folder / "system.toml").write_text(f'integrator = "brownian"\n{table}')
    molecule = sgm.load_system(folder)
    campaign = Campaign(molecule, TINY, np.random.SeedSequence(1), print)
    assert (molecule.integrator, campaign.settings.integrator) == ("brownian", "brownian")
    (folder / "system.toml").write_text(f'integrator = "verlet"\n{table}')
    with pytest.raises(sgm.InputError, match="'langevin_middle' or 'brownian'"):
        sgm.load_system(folder)
    with pytest.raises(sgm.InputError, match="one of langevin_middle, brownian, got 'verlet'"):
        replace(molecule, integrator="verlet")
    with pytest.raises(ValueError, match="got 'verlet'"):
        oscillator("verlet")


def moon_simulation() -> tuple[app.Simulation, tuple[sgm.CollectiveVariable, ...]]:
    molecule = sgm.load_system(REPOSITORY / "systems" / "half_moon")
    integrator = openmm.BrownianIntegrator(300 * unit.kelvin, 4 / unit.picosecond, 5 * unit.femtosecond)
    reference = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, molecule.system, integrator, reference)
    simulation.context.setPositions(molecule.positions)
    return simulation, molecule.cvs


def test_a_users_brownian_simulation_is_sampled_and_resumed(tmp_path: Path) -> None:
    """The surface within 0.25 kT of the closed form (and its own errors), and the same after saving and loading."""
    simulation, cvs = moon_simulation()
    sampler = sgm.ScoreSampler(simulation, cvs, seed=2, workers=0, options=TINY)
    molecule = sampler.molecule
    assert (molecule.temperature_k, molecule.friction_per_ps, molecule.integrator) == (300.0, 4.0, "brownian")
    assert molecule.time_step_fs == pytest.approx(5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sgm.HiddenStateWarning)
        sampler.run(12_000)
    surface = sampler.surface(bins=20)
    known = next(s for s in SYSTEMS if s.name == "half_moon")
    exact = known.surface(surface.edges[0])
    low = exact < 15
    difference = (surface.free_energy - exact)[low]
    difference -= difference.mean()
    assert np.sqrt(np.mean(difference**2)) < 0.25 * KT
    assert np.sqrt(np.mean((difference / surface.std_error[low]) ** 2)) < 2.5
    campaign = sampler.campaign
    assert campaign is not None
    assert all(walker.velocities is None for walker in campaign.walkers.values())

    save_state(tmp_path, sampler)
    again = sgm.ScoreSampler(*moon_simulation(), seed=2, workers=0, options=TINY)
    load_state(tmp_path, again)
    np.testing.assert_allclose(again.surface(bins=20).free_energy, surface.free_energy, atol=1e-9)
    assert again.campaign is not None
    assert all(walker.velocities is None for walker in again.campaign.walkers.values())

    before = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    sampler.reseed(simulation, {"slow": 0.5})
    after = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    assert not np.allclose(before, after)
    assert sampler.step(simulation, 200, interval=50).proposed == 16
