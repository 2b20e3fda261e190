"""What each of OpenMM's integrators stands for, or the sentence by which it is refused."""

from __future__ import annotations

import math
import warnings

import openmm
import pytest
from analytic import triatomic
from openmm import app, unit

import openmm_sgm as sgm
from openmm_sgm.dynamics import force_groups, thermostats
from openmm_sgm.units import InputError

MTS = [(0, 1), (1, 8)]
POSITION_NOISE = "v + dt*f/m + sqrt(kT/m)*gaussian"


def simulation_with(integrator: openmm.Integrator, *extra: openmm.Force) -> app.Simulation:
    """Return a simulation of a bent molecule of three atoms; its angle is in group 1 and its bonds in group 0."""
    molecule = triatomic()
    system = molecule.system
    system.getForce(1).setForceGroup(1)
    for force in extra:
        system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, system, integrator, platform)
    simulation.context.setPositions(molecule.positions)
    return simulation


def taken(simulation: app.Simulation, **arguments: object) -> sgm.MolecularSystem:
    return sgm.MolecularSystem.from_simulation(simulation, [sgm.Distance("r", (0, 1), 0.08, 0.22)], **arguments)


def custom(*expressions: str, variables: dict[str, float] | None = None) -> openmm.CustomIntegrator:
    integrator = openmm.CustomIntegrator(0.002)
    for name, value in (variables or {}).items():
        integrator.addGlobalVariable(name, value)
    for expression in expressions:
        integrator.addComputePerDof("v", expression)
    return integrator


def compound(*integrators: openmm.Integrator) -> openmm.CompoundIntegrator:
    result = openmm.CompoundIntegrator()
    for integrator in integrators:
        result.addIntegrator(integrator)
    return result


@pytest.mark.parametrize(
    ("integrator", "arguments", "expected"),
    [
        (openmm.LangevinMiddleIntegrator(310, 5, 0.002), {}, (310, 2, 5, "langevin_middle")),
        (openmm.LangevinIntegrator(310, 5, 0.002), {}, (310, 2, 5, "langevin_middle")),
        (openmm.BrownianIntegrator(310, 5, 0.002), {}, (310, 2, 5, "brownian")),
        (openmm.VerletIntegrator(0.002), {"temperature": 310}, (310, 2, 1, "langevin_middle")),
        (openmm.NoseHooverIntegrator(310, 5, 0.002), {}, (310, 2, 1, "langevin_middle")),
        (openmm.NoseHooverIntegrator(0.002), {"temperature": 310}, (310, 2, 1, "langevin_middle")),
        (openmm.VariableLangevinIntegrator(310, 5, 1e-3), {"time_step": 2}, (310, 2, 5, "langevin_middle")),
        (
            openmm.VariableVerletIntegrator(1e-3),
            {"temperature": 310, "time_step": 2 * unit.femtosecond},
            (310, 2, 1, "langevin_middle"),
        ),
        (openmm.MTSLangevinIntegrator(310, 5, 0.004, MTS), {}, (310, 0.5, 5, "langevin_middle")),
        (openmm.MTSIntegrator(0.004, MTS), {"temperature": 310}, (310, 0.5, 1, "langevin_middle")),
        (openmm.MTSIntegrator(0.004, MTS), {"temperature": 310, "time_step": 1}, (310, 1, 1, "langevin_middle")),
        (
            compound(openmm.BrownianIntegrator(310, 5, 0.002), openmm.VerletIntegrator(0.001)),
            {},
            (310, 2, 5, "brownian"),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, openmm.Integrator) else "",
)
def test_integrators_of_the_same_ensemble(
    integrator: openmm.Integrator, arguments: dict[str, object], expected: tuple[float, float, float, str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        molecule = taken(simulation_with(integrator), **arguments)
    found = (molecule.temperature_k, molecule.time_step_fs, molecule.friction_per_ps)
    assert found == pytest.approx(expected[:3])
    assert molecule.integrator == expected[3]


@pytest.mark.parametrize(
    ("integrator", "temperature", "message"),
    [
        (openmm.VariableLangevinIntegrator(300, 1, 1e-3), None, "no fixed time step: give one, .*time_step=1.0"),
        (openmm.VariableVerletIntegrator(1e-3), 300, "VariableVerletIntegrator has no fixed time step"),
        (openmm.amd.AMDIntegrator(0.002, 1.0, 10.0), 300, "AMDIntegrator flattens the potential"),
        (openmm.amd.AMDForceGroupIntegrator(0.002, 1, 1.0, 10.0), 300, "AMDForceGroupIntegrator flattens"),
        (openmm.amd.DualAMDIntegrator(0.002, 1, 1.0, 10.0, 1.0, 10.0), 300, "DualAMDIntegrator flattens"),
        (openmm.RPMDIntegrator(4, 300, 1, 0.001), None, "RPMDIntegrator samples quantum particles"),
        (openmm.DrudeLangevinIntegrator(300, 1, 1, 1, 0.001), None, "DrudeLangevinIntegrator keeps Drude"),
        (openmm.DrudeSCFIntegrator(0.001), 300, "DrudeSCFIntegrator holds Drude"),
        (openmm.VerletIntegrator(0.001), None, "VerletIntegrator has no thermostat"),
        (custom("v + dt*f*(energy/10)/m"), 300, "CustomIntegrator changes the forces by the energy"),
        (custom("v + dt*f/m"), None, "CustomIntegrator has no thermostat: give a temperature"),
        (custom(POSITION_NOISE, variables={"kT": 2.5}), 350, r"contradict .* 300.*\(kT of CustomIntegrator\)"),
        (
            compound(openmm.LangevinMiddleIntegrator(300, 1, 0.001), openmm.LangevinIntegrator(400, 1, 0.001)),
            None,
            r"contradict .* 400 K \(Langevin\w*Integrator in the CompoundIntegrator\)",
        ),
        (openmm.LangevinMiddleIntegrator(0, 1, 0.001), 300, r"contradict each other: 0 K .* and 300 K"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, openmm.Integrator) else "",
)
@pytest.mark.filterwarnings("ignore:what CustomIntegrator")
def test_integrators_that_are_refused(integrator: openmm.Integrator, temperature: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        taken(_of_unmade_context(integrator), temperature=temperature)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["QTBIntegrator", "DPDIntegrator"])
def test_integrators_of_newer_versions_that_are_refused(name: str) -> None:
    if not hasattr(openmm, name):
        pytest.skip(f"this OpenMM has no {name}")
    arguments = (300, 1, 0.001) if name == "QTBIntegrator" else (300, 1, 1.0, 0.001)
    with pytest.raises(InputError, match=f"{name} .* not the classical ensemble .* LangevinMiddleIntegrator"):
        taken(_of_unmade_context(getattr(openmm, name)(*arguments)))


def _of_unmade_context(integrator: openmm.Integrator) -> app.Simulation:
    """Return a simulation that says to have an integrator: some cannot be used with every system or platform."""
    simulation = simulation_with(openmm.VerletIntegrator(0.001))
    simulation.integrator = integrator
    return simulation


def test_a_custom_integrator_is_taken_with_a_warning_of_what_is_assumed() -> None:
    simulation = simulation_with(custom(POSITION_NOISE, variables={"kT": 2.5}))
    with pytest.warns(UserWarning, match="what CustomIntegrator computes cannot be read: Langevin dynamics .* 2 fs"):
        molecule = taken(simulation)
    assert molecule.temperature_k == pytest.approx(300.68, abs=0.01)


def test_groups_that_a_custom_integrator_asks_for_one_by_one() -> None:
    assert force_groups(openmm.MTSIntegrator(0.004, [(0, 1), (3, 2)])) == 0b1001
    assert force_groups(custom("v + dt*f/m")) == openmm.VerletIntegrator(0.001).getIntegrationForceGroups()
    simulation = simulation_with(openmm.MTSLangevinIntegrator(300, 1, 0.002, [(0, 2)]))
    with pytest.warns(UserWarning, match="HarmonicAngleForce: the integrator leaves this force group out"):
        molecule = taken(simulation)
    assert [type(force).__name__ for force in molecule.system.getForces()] == ["HarmonicBondForce"]


def test_thermostats_of_a_simulation() -> None:
    simulation = simulation_with(openmm.MTSLangevinIntegrator(300, 1, 0.002, MTS), openmm.AndersenThermostat(320, 1))
    (first, one), (second, other) = thermostats(simulation)
    assert (first, second) == ("kT of MTSLangevinIntegrator", "AndersenThermostat")
    assert math.isclose(one, 300)
    assert math.isclose(other, 320)
    late = simulation_with(openmm.VerletIntegrator(0.001))
    late.system.addForce(openmm.AndersenThermostat(300, 1))
    with pytest.raises(InputError, match="AndersenThermostat was added after the context was made"):
        taken(late)
