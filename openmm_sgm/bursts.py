"""Short unbiased simulations from given configurations, as CV trajectories, with the user's own physics."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

from .cvs import CollectiveVariable, as_cvs
from .dynamics import force_groups, temperature_of
from .executors import SerialExecutor, run_units
from .platforms import platform_properties
from .units import InputError, one_line, strip_units
from .velocities import draw_velocities

__all__ = ["Bursts", "run_bursts"]

BURSTS_PER_UNIT = 200
CONSTRAINT_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Bursts:
    """CV trajectories of bursts.

    Attributes
    ----------
    values : float64, shape (n_bursts, n_times, d), CV units; the first time is the start, after constraints are
        applied. NaN throughout a burst that failed
    time_spacing : ps between them
    starts : int64, shape (n_bursts,); which of the starting configurations each burst began from
    force_evaluations : integration steps, plus one for each draw of velocities
    failures : burst -> why it failed
    """

    values: np.ndarray
    time_spacing: float
    starts: np.ndarray
    force_evaluations: int
    failures: dict[int, str]


@dataclass(frozen=True, eq=False)
class _Unit:
    """Bursts that one worker runs in one context."""

    system_xml: str
    integrator_xml: str
    platform: str
    parameters: dict[str, float]
    box: Any
    topology: mdtraj.Topology
    cvs: tuple[CollectiveVariable, ...]
    temperature_k: float | None
    starts: np.ndarray
    steps: int
    interval: int
    seed: np.random.SeedSequence


def run_bursts(
    simulation: app.Simulation,
    starts: np.ndarray,
    cvs: Sequence[CollectiveVariable],
    *,
    steps: int,
    interval: int,
    seed: int,
    copies: int = 1,
    temperature: Any = None,
    executor: Executor | None = None,
) -> Bursts:
    """Run `copies` bursts from each configuration and return the CVs along them.

    The simulation is read, never changed: bursts run in contexts of their own, with copies of its system and
    integrator, on its platform, with its context parameters and box. Velocities are drawn for every burst
    (`velocities.draw_velocities`); a `BrownianIntegrator` has none. Bursts go to the executor in units of
    `BURSTS_PER_UNIT`, each with a seed of its own, so that on `Reference` and `CPU` (with one thread) the result
    does not depend on the executor.

    >>> bursts = run_bursts(simulation, frames, [phi, psi], steps=2000, interval=50, seed=1, copies=4)
    >>> bursts.values.shape  # (4 * len(frames), 41, 2)

    Parameters
    ----------
    starts : float64, shape (n, n_atoms, 3), nm or a Quantity. For `estimate_drift_and_diffusion` they must be an
        equilibrium sample among configurations of equal CVs: frames of unbiased or umbrella simulations, or accepted
        generated configurations; how many there are at which value of the CVs does not matter
    cvs : one to three collective variables; those with a function of your own need one from a module where an executor
        of processes is used
    steps, interval : integration steps of a burst, and between stored values
    temperature : K or a Quantity; needed where the simulation has no thermostat of any kind

    Raises
    ------
    InputError
        for starts of another shape, steps that are no multiple of interval, or a temperature that is missing or not
        the thermostat's.
    """
    cvs = as_cvs(cvs)
    positions = np.asarray(strip_units(starts, unit.nanometer), dtype=float)
    n_atoms = simulation.system.getNumParticles()
    if positions.ndim != 3 or positions.shape[1:] != (n_atoms, 3) or not len(positions):
        raise InputError(f"starts must have shape (n, {n_atoms}, 3) in nm, got {positions.shape}")
    if interval < 1 or steps < interval or steps % interval or copies < 1:
        raise InputError(
            f"steps must be a multiple of interval and copies 1 or more, got {steps}, {interval} and {copies}"
        )
    state = simulation.context.getState()
    origins = np.repeat(np.arange(len(positions)), copies)
    parts = np.array_split(origins, -(-len(origins) // BURSTS_PER_UNIT))
    shared = {
        "system_xml": openmm.XmlSerializer.serialize(simulation.system),
        "integrator_xml": openmm.XmlSerializer.serialize(simulation.integrator),
        "platform": simulation.context.getPlatform().getName(),
        "parameters": dict(simulation.context.getParameters()),
        "box": state.getPeriodicBoxVectors() if simulation.system.usesPeriodicBoundaryConditions() else None,
        "topology": mdtraj.Topology.from_openmm(simulation.topology),
        "cvs": cvs,
        "temperature_k": _temperature(simulation, temperature),
        "steps": steps,
        "interval": interval,
    }
    seeds = np.random.SeedSequence(seed).spawn(len(parts))
    units = [_Unit(starts=positions[part], seed=s, **shared) for part, s in zip(parts, seeds, strict=True)]
    results = run_units(executor or SerialExecutor(), _run_unit, units)
    failures: dict[int, str] = {}
    for part, first in zip(results, np.cumsum([0] + [len(part) for part in parts]), strict=False):
        failures |= {int(first) + index: reason for index, reason in part[2].items()}
    return Bursts(
        values=np.concatenate([values for values, _, _ in results]),
        time_spacing=interval * simulation.integrator.getStepSize().value_in_unit(unit.picosecond),
        starts=origins,
        force_evaluations=sum(evaluations for _, evaluations, _ in results),
        failures=failures,
    )


def _temperature(simulation: app.Simulation, given: Any) -> float | None:
    """Return the temperature of velocities in K, or None where there are none."""
    temperature = temperature_of(simulation, given)
    if isinstance(simulation.integrator, openmm.BrownianIntegrator):
        return None
    if temperature is None:
        raise InputError(f"{type(simulation.integrator).__name__} has no temperature: give it as temperature=")
    return temperature


def _run_unit(work: _Unit) -> tuple[np.ndarray, int, dict[int, str]]:
    """Return the CVs of a unit's bursts, its force evaluations, and the failures."""
    velocity_seed, noise_seed = work.seed.spawn(2)
    rng = np.random.default_rng(velocity_seed)
    integrator = openmm.XmlSerializer.deserialize(work.integrator_xml)
    if hasattr(integrator, "setRandomNumberSeed"):
        integrator.setRandomNumberSeed(int(noise_seed.generate_state(1)[0] % (2**31 - 1)) + 1)
    system = openmm.XmlSerializer.deserialize(work.system_xml)
    platform = openmm.Platform.getPlatformByName(work.platform)
    context = openmm.Context(system, integrator, platform, platform_properties(work.platform))
    for name, value in work.parameters.items():
        context.setParameter(name, value)
    if work.box is not None:
        context.setPeriodicBoxVectors(*work.box)
    n_times = work.steps // work.interval + 1
    frames = np.full((len(work.starts), n_times, *work.starts.shape[1:]), np.nan)
    evaluations, failures = 0, {}
    for burst, start in enumerate(work.starts):
        try:
            context.setPositions(start)
            context.applyConstraints(CONSTRAINT_TOLERANCE)
            context.computeVirtualSites()
            if work.temperature_k is not None:
                groups = force_groups(integrator)
                evaluations += draw_velocities(context, work.temperature_k, rng, groups)
            for time in range(n_times):
                if time:
                    evaluations += work.interval
                    integrator.step(work.interval)
                frames[burst, time] = context.getState(positions=True).getPositions(asNumpy=True)._value
            if not np.isfinite(frames[burst]).all():
                raise openmm.OpenMMException("a position was not finite")
        except openmm.OpenMMException as error:
            failures[burst] = one_line(error)
            frames[burst] = np.nan
    sound = np.isfinite(frames).all(axis=(1, 2, 3))
    values = np.full((len(work.starts), n_times, len(work.cvs)), np.nan)
    trajectory = mdtraj.Trajectory(frames[sound].reshape(-1, *work.starts.shape[1:]), work.topology)
    for k, cv in enumerate(work.cvs):
        values[sound, :, k] = cv.evaluate(trajectory).reshape(-1, n_times)
    return values, evaluations, failures
