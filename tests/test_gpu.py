"""Molecular dynamics and energies on GPUs; every test is skipped, saying so, where there is no device."""

from __future__ import annotations

import copy

import numpy as np
import openmm
import pytest
from openmm import app

from openmm_sgm.executors import SerialExecutor, WorkerPool
from openmm_sgm.platforms import assign_devices, choose_platform, platform_properties
from openmm_sgm.simulate import MDSettings, Segment, evaluate, run_segments
from openmm_sgm.system import MolecularSystem
from openmm_sgm.windows import WindowGrid

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["CUDA", "HIP", "OpenCL"])
def platform(request: pytest.FixtureRequest) -> str:
    """A GPU platform on which a context can be made."""
    name: str = request.param
    system = openmm.System()
    system.addParticle(1.0)
    try:
        found = openmm.Platform.getPlatformByName(name)
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), found, platform_properties(name))
    except openmm.OpenMMException as error:
        pytest.skip(f"no {name} device here: {error}")
    del context
    return name


def settings_on(molecule: MolecularSystem, platform: str) -> MDSettings:
    system, prefixes, groups = molecule.biased_system()
    return MDSettings(
        system_xml=openmm.XmlSerializer.serialize(system),
        physical_groups=groups,
        bias_prefixes=prefixes,
        temperature_k=molecule.temperature_k,
        time_step_fs=molecule.time_step_fs,
        friction_per_ps=molecule.friction_per_ps,
        platform=platform,
        platform_properties=platform_properties(platform),
    )


def test_energies_agree_with_the_reference_platform(
    alanine: MolecularSystem, alanine_conformations: np.ndarray, platform: str
) -> None:
    """Mixed precision sums forces in single precision: a hundredth of kT is what the Metropolis test can bear."""
    exact, exact_forces, _ = evaluate(settings_on(alanine, "Reference"), alanine_conformations)
    energies, forces, _ = evaluate(settings_on(alanine, platform), alanine_conformations)
    np.testing.assert_allclose(energies, exact, atol=0.025, rtol=1e-6)
    scale = np.abs(exact_forces).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(forces / scale, exact_forces / scale, atol=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_run_on_the_device(alanine: MolecularSystem, platform: str, workers: int) -> None:
    grid = WindowGrid.over(alanine.cvs, alanine.temperature_k)
    window = grid.nearest(alanine.evaluate_cvs(alanine.positions[None])[0])
    segments = [
        Segment(
            walker=k,
            positions=alanine.positions,
            velocities=None,
            center=grid.centers[window],
            force_constants=grid.force_constants,
            pull_from=None,
            pull_steps=0,
            equilibration_steps=100,
            steps=400,
            frame_interval=100,
            seed=k,
        )
        for k in range(4)
    ]
    settings = settings_on(alanine, platform)
    if workers:
        with WorkerPool(workers) as pool:
            results = run_segments(settings, segments, pool, workers)
    else:
        results = run_segments(settings, segments, SerialExecutor(), 1)
    assert [result.failure for result in results] == [None] * 4
    cvs = alanine.evaluate_cvs(np.concatenate([result.positions for result in results]))
    assert np.abs(grid.difference(cvs, grid.centers[window])).max() < 1.0


def test_every_worker_has_a_device(platform: str) -> None:
    given = assign_devices(platform, 3)
    assert len(given) == 3
    assert all("DeviceIndex" in properties for properties in given)


def test_the_choice_of_platform_times_it(alanine: MolecularSystem, platform: str) -> None:
    choice = choose_platform(alanine.system, alanine.positions, cache=None)
    assert choice.steps_per_second[platform] > 0


@pytest.mark.parametrize("precision", ["single", "mixed"])
def test_a_simulation_on_the_device_is_no_other_physics(
    alanine: MolecularSystem, platform: str, precision: str
) -> None:
    """Rounding is no difference between context and copy, and the comparison leaves the context's state as it was."""
    simulation = app.Simulation(
        alanine.topology,
        copy.deepcopy(alanine.system),
        openmm.LangevinMiddleIntegrator(300, 1, 0.002),
        openmm.Platform.getPlatformByName(platform),
        {"Precision": precision},
    )
    simulation.context.setPositions(alanine.positions + np.array([40.0, -30.0, 20.0]))
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(100)
    before = simulation.context.getState(positions=True, velocities=True)
    MolecularSystem.from_simulation(simulation, alanine.cvs)
    after = simulation.context.getState(positions=True, velocities=True)
    np.testing.assert_array_equal(after.getPositions(asNumpy=True)._value, before.getPositions(asNumpy=True)._value)
    np.testing.assert_array_equal(after.getVelocities(asNumpy=True)._value, before.getVelocities(asNumpy=True)._value)
