"""One OpenMM context for one kind of dynamics: it counts its force evaluations and tells when a walker has blown up."""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import openmm

from .platforms import own_device
from .stereo import Stereo
from .units import thermal_energy
from .velocities import INTEGRATORS, IntegratorKind, draw_velocities, make_integrator

__all__ = ["Blowup", "Engine", "MDSettings", "copy_vectors", "engine_for", "refuse_blowup", "refuse_changed"]

CONSTRAINT_TOLERANCE = 1e-6
QUENCH_DISPLACEMENT = 0.01


@dataclass(frozen=True)
class MDSettings:
    """How to run a system: everything that is the same for all walkers.

    Attributes
    ----------
    system_xml : the biased system, serialised; each CV's umbrella has the global parameters `{prefix}_center` and
        `{prefix}_force_constant`
    physical_groups : force groups of the unbiased potential, as a bit mask (bit g set for group g)
    bias_prefixes : parameter prefixes, one per CV, in the order of `Segment.center`
    temperature_k, time_step_fs, friction_per_ps : of the integrator
    platform, platform_properties : where contexts are made
    integrator : "langevin_middle", or "brownian", which has no velocities
    stereo : what no walker may change, see `Stereo`; nothing by default
    """

    system_xml: str
    physical_groups: int
    bias_prefixes: tuple[str, ...]
    temperature_k: float
    time_step_fs: float
    friction_per_ps: float
    platform: str
    platform_properties: dict[str, str]
    integrator: IntegratorKind = "langevin_middle"
    stereo: Stereo = field(default_factory=Stereo)

    def __post_init__(self) -> None:
        for name in ("temperature_k", "time_step_fs", "friction_per_ps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.integrator not in INTEGRATORS:
            raise ValueError(f"integrator must be one of {', '.join(INTEGRATORS)}, got {self.integrator!r}")
        if not 0 < self.physical_groups < 2**32:
            raise ValueError(f"physical_groups must be a bit mask of groups 0 to 31, got {self.physical_groups}")

    def __hash__(self) -> int:
        return hash((self.system_xml, self.platform, self.temperature_k, self.time_step_fs))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel compressed: the XML of a large system is some ten megabytes, and goes with every unit of work."""
        rest = [getattr(self, own.name) for own in fields(self) if own.name != "system_xml"]
        return _travelled, (_deflated(self.system_xml), *rest)


@lru_cache(maxsize=8)
def _deflated(text: str) -> bytes:
    return zlib.compress(text.encode(), level=1)


@lru_cache(maxsize=8)
def _inflated(data: bytes) -> str:
    return zlib.decompress(data).decode()


def _travelled(data: bytes, *rest: Any) -> MDSettings:
    return MDSettings(_inflated(data), *rest)


class Blowup(Exception):
    """A walker left the region where its numbers mean anything, or has become another molecule."""


class Engine:
    """A context with its integrator, and the count of force evaluations made in it."""

    def __init__(self, settings: MDSettings) -> None:
        self.settings = settings
        self.time_step = settings.time_step_fs / 1000
        self.evaluations = 0
        system = openmm.XmlSerializer.deserialize(settings.system_xml)
        self.mobile = np.array([[system.getParticleMass(i)._value > 0] for i in range(system.getNumParticles())])
        # Equipartition puts kT/2 into a harmonic degree of freedom; forty times that everywhere is no longer heat.
        self.headroom = 1000 + 20 * thermal_energy(settings.temperature_k) * 3 * len(self.mobile)
        self.integrator = make_integrator(
            settings.integrator, settings.temperature_k, settings.friction_per_ps, self.time_step
        )
        self.has_velocities = settings.integrator != "brownian"
        self.integrator.setConstraintTolerance(CONSTRAINT_TOLERANCE)
        platform = openmm.Platform.getPlatformByName(settings.platform)
        self.context = openmm.Context(system, self.integrator, platform, settings.platform_properties)
        # `Reference` draws a process's noise from one generator: a tiny context restarts it at a fifth of the cost.
        self.noise_source = {"Reference": _one_particle_context(), "CPU": self.context}.get(settings.platform)

    def reseed(self, seed: int) -> None:
        """Restart the integrator's noise; OpenMM reads its seed only when a context is (re)initialised."""
        if self.noise_source is not None:
            self.noise_source.getIntegrator().setRandomNumberSeed(seed)
            self.noise_source.reinitialize()

    def place(self, positions: np.ndarray) -> None:
        self.context.setPositions(np.ascontiguousarray(positions, dtype=float))
        self.context.applyConstraints(CONSTRAINT_TOLERANCE)
        self.context.computeVirtualSites()

    def draw_velocities(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.evaluations += draw_velocities(self.context, self.settings.temperature_k, rng)

    def refuse_changed(self, stage: str) -> None:
        """Raise `Blowup` where the context holds another molecule than the one that was given, see `Stereo`."""
        positions = self.context.getState(positions=True).getPositions(asNumpy=True)._value
        refuse_changed(self.settings.stereo, positions[None], stage)

    def set_umbrella(self, center: np.ndarray, force_constants: np.ndarray) -> None:
        for prefix, point, constant in zip(self.settings.bias_prefixes, center, force_constants, strict=True):
            self.context.setParameter(f"{prefix}_center", float(point))
            self.context.setParameter(f"{prefix}_force_constant", float(constant))

    def step(self, steps: int) -> None:
        self.evaluations += steps
        self.integrator.step(steps)

    def state(self, groups: int = -1, forces: bool = True) -> openmm.State:
        """Return positions, energy and forces of the groups given: one evaluation."""
        self.evaluations += 1
        return self.context.getState(positions=True, energy=True, forces=forces, groups=groups)

    def check(self, lowest: float, stage: str) -> float:
        """Return the lower of `lowest` and the energy now, refusing an energy that has blown up."""
        energy = self.state(self.settings.physical_groups, forces=False).getPotentialEnergy()._value
        refuse_blowup(energy, lowest + self.headroom, stage)
        return min(lowest, energy)

    @contextlib.contextmanager
    def time_step_shortened(self, factor: int) -> Iterator[None]:
        self.integrator.setStepSize(self.time_step / factor)
        try:
            yield
        finally:
            self.integrator.setStepSize(self.time_step)

    def quench(self, steps: int) -> None:
        """Steepest descent on the biased potential, one evaluation a step (GROMACS manual, "Energy minimization").

        Displacements are scaled to the largest force, so that a clash of any size is moved apart by 0.01 nm a step.
        """
        length = QUENCH_DISPLACEMENT
        state = self.state()
        for _ in range(steps):
            force = state.getForces(asNumpy=True)._value * self.mobile
            largest = np.linalg.norm(force, axis=1).max()
            if not np.isfinite(largest) or largest == 0:
                break
            self.place(state.getPositions(asNumpy=True)._value + length / largest * force)
            trial = self.state()
            if trial.getPotentialEnergy() < state.getPotentialEnergy():
                state, length = trial, min(1.2 * length, QUENCH_DISPLACEMENT)
            else:
                length *= 0.2
        self.place(state.getPositions(asNumpy=True)._value)


def _one_particle_context() -> openmm.Context:
    system = openmm.System()
    system.addParticle(1.0)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.001)
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))


def engine_for(settings: MDSettings) -> Engine:
    """Return this thread's engine for the settings, kept from one call to the next.

    Where there are several devices and the settings name none, each worker has its own, see `own_device`.
    """
    if "DeviceIndex" not in settings.platform_properties:
        properties = settings.platform_properties | own_device(settings.platform)
        settings = replace(settings, platform_properties=properties)
    return _engine(settings, threading.get_ident())


@lru_cache(maxsize=8)
def _engine(settings: MDSettings, thread: int) -> Engine:
    return Engine(settings)


def refuse_blowup(energy: float, ceiling: float, stage: str) -> None:
    """Raise `Blowup` for an energy in kJ/mol that is not finite or not below the ceiling."""
    if not -np.inf < energy < ceiling:
        raise Blowup(f"blew up {stage}: potential energy {energy:.4g} kJ/mol")


def refuse_changed(stereo: Stereo, positions: np.ndarray, stage: str) -> None:
    """Raise `Blowup` for positions (n, n_atoms, 3) one of which is of another molecule, see `Stereo`."""
    if not stereo.kept(positions).all():
        raise Blowup(f"{next(filter(None, stereo.changed(positions)))} {stage}")


def copy_vectors(state: openmm.State, vectors: int, target: np.ndarray) -> None:
    """Fill `target`; `state.getPositions(asNumpy=True)` and its like make this call and add 9 µs, a force evaluation's
    time for a small molecule."""
    state._getVectorAsNumpy(vectors, target)
