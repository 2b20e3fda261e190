"""`MolecularSystem`: one molecule, its physics and its CVs, from a folder or from a user's `Simulation`."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any

import mdtraj
import numpy as np
import openmm
from openmm import app, unit
from scipy.spatial.transform import Rotation

from .cv_checks import check_bonds_and_lines, refuse_constant
from .cvs import CollectiveVariable, ExpressionCV, Torsion, as_cvs
from .dynamics import DEFAULT_FRICTION_PER_PS
from .forces import default_parameters, describe_forces, parameter_names, without_forces
from .from_simulation import read_simulation
from .place import switched_off
from .stereo import Stereo, stiff_bonds
from .supported import bonded_pairs, check_size_and_box, check_supported, constraints_of, particle_masses
from .units import TEMPERATURES_K, InputError, check_range, strip_units
from .velocities import INTEGRATORS, IntegratorKind

__all__ = ["MolecularSystem", "bin_counts"]

PERIODIC_BINS = 36
BINS = 40
MOST_BINS, MOST_BINS_ALONG = 4_000_000, 10_000
MOST_WINDOWS = 100_000
"""Of the grid over all CVs together."""
CV_TOLERANCE = 2e-3
"""Largest difference of mdtraj's and OpenMM's value of a CV, relative to 1 + |value|; mdtraj is in single precision."""
FORCE_GROUPS = 32
CHUNK = 10_000


@dataclass(frozen=True, eq=False)
class MolecularSystem:
    """One bonded molecule at constant temperature, with one to three CVs; what every other module is told of it.

    >>> molecule = load_system(Path("systems/alanine_dipeptide_vacuum"))
    >>> molecule.evaluate_cvs(molecule.positions[None])  # shape (1, 2), radians
    >>> biased, prefixes, physical_groups = molecule.biased_system()

    Attributes
    ----------
    name : for output
    topology : with the bonds
    system : the physics, a copy of what was given without its AndersenThermostat forces (the integrator keeps the
        temperature here); a CMMotionRemover stays, as it changes no internal coordinate
    positions : float64, shape (n_atoms, 3), nm; a starting configuration
    cvs : one to three collective variables
    temperature_k, time_step_fs, friction_per_ps : of the dynamics
    bins : per CV, bins of a surface; empty stands for 36 for a periodic CV and 40 for another
    integrator : "langevin_middle" or "brownian"

    Raises
    ------
    InputError
        see `check_supported`; also if a CV's mdtraj value and OpenMM force disagree at `positions`, or it can have no
        value or no other one, see `cv_checks`.
    """

    name: str
    topology: app.Topology
    system: openmm.System
    positions: np.ndarray
    cvs: tuple[CollectiveVariable, ...]
    temperature_k: float
    time_step_fs: float = 2.0
    friction_per_ps: float = DEFAULT_FRICTION_PER_PS
    bins: tuple[int, ...] = ()
    integrator: IntegratorKind = "langevin_middle"

    def __post_init__(self) -> None:
        def put(field: str, value: Any) -> None:
            object.__setattr__(self, field, value)

        put("cvs", tuple(cv.for_system(self.system.getNumParticles()) for cv in as_cvs(self.cvs)))
        check_size_and_box(self.topology, self.system, self.cvs)
        positions = np.array(strip_units(self.positions, unit.nanometer), dtype=np.float64)
        expected = (self.system.getNumParticles(), 3)
        if positions.shape != expected or not np.isfinite(positions).all():
            raise InputError(f"positions must be finite and of shape {expected} in nm, got shape {positions.shape}")
        put("positions", positions)
        put("bins", bin_counts(self.bins, self.cvs))
        windows = [cv.window_count for cv in self.cvs]
        if math.prod(windows) > MOST_WINDOWS:
            raise InputError(
                f"a grid has at most {MOST_WINDOWS:,} windows, got {' x '.join(map(str, windows))}: give fewer"
            )
        for field, target, bounds in (
            ("temperature_k", unit.kelvin, TEMPERATURES_K),
            ("time_step_fs", unit.femtosecond, (1e-6, 1e6)),
            ("friction_per_ps", unit.picosecond**-1, (1e-9, 1e9)),
        ):
            value = strip_units(getattr(self, field), target)
            if not (np.isfinite(value) and value > 0):
                raise InputError(f"{field} must be positive and finite, got {value}")
            check_range(field, value, *bounds)
            put(field, value)
        if self.integrator not in INTEGRATORS:
            raise InputError(f"the integrator must be one of {', '.join(INTEGRATORS)}, got {self.integrator!r}")
        if self.n_atoms > 1 and not np.ptp(positions, axis=0).any() and not _has_external_force(self.system):
            raise InputError("all atoms are at one place: set the positions of the simulation first")
        put("system", _without_what_does_nothing(self.system, positions))
        put("tied", check_supported(self.topology, self.system, self.cvs, positions))
        check_bonds_and_lines(self.topology, self.system, positions, self.cvs)
        self._check_cvs_agree()
        refuse_constant(self.constraints, positions, self.cvs, lambda x: self.cv_gradients(x, range(len(self.cvs))))
        self._check_start()

    @staticmethod
    def from_simulation(
        simulation: app.Simulation,
        cvs: Sequence[CollectiveVariable],
        temperature: Any = None,
        bins: Sequence[int] | int | None = None,
        name: str = "user",
        time_step: Any = None,
    ) -> MolecularSystem:
        """Return the system of a user's `Simulation`, which is read and not changed.

        Positions and context parameters are the context's current ones, the forces those of the integrator's force
        groups, time step and friction the integrator's (an integrator without friction stands for 1/ps). A
        BrownianIntegrator stands for itself, others for a LangevinMiddleIntegrator if they sample the same ensemble,
        see `read_integrator`. The temperature comes from the integrator or an AndersenThermostat, and must be given
        where neither has one. A bias that is in the system already is part of the physics; a warning names it.

        Parameters
        ----------
        temperature : Quantity or K
        time_step : Quantity or fs, instead of the integrator's; needed where that one varies

        Raises
        ------
        InputError
            without a temperature, with contradicting temperatures, with an integrator of another physics, where the
            context computes other energies than the system, or where `check_supported` says no.
        """
        cvs = as_cvs(cvs)
        read = read_simulation(simulation, cvs, temperature, time_step)
        return MolecularSystem(
            name=name,
            topology=read.topology,
            system=read.system,
            positions=read.positions,
            cvs=cvs,
            temperature_k=read.temperature_k,
            time_step_fs=read.time_step_fs,
            friction_per_ps=read.friction_per_ps,
            bins=bin_counts(bins, cvs),
            integrator=read.integrator,
        )

    @property
    def n_atoms(self) -> int:
        """Particles of the system, virtual sites included."""
        return self.system.getNumParticles()

    @cached_property
    def tied(self) -> bool:
        """Whether forces tie the particles to a place: Cartesian coordinates are sampled then."""
        return check_supported(self.topology, self.system, self.cvs, self.positions)

    @cached_property
    def mdtraj_topology(self) -> mdtraj.Topology:
        """The topology for mdtraj."""
        return mdtraj.Topology.from_openmm(self.topology)

    @cached_property
    def stereo(self) -> Stereo:
        """The cis/trans states and the handedness at `positions`, which no configuration may change; see `Stereo`."""
        return Stereo() if self.tied else Stereo.of(self.topology, self.system, self.positions, self.cvs)

    @cached_property
    def stiff_cvs(self) -> tuple[tuple[int, ...], ...]:
        """The atoms of the CVs that are torsions about double or amide bonds."""
        if self.tied:
            return ()
        bonds = {frozenset(quad[1:3]) for quad, _ in stiff_bonds(self.topology, self.system)}
        return tuple(cv.atoms for cv in self.cvs if isinstance(cv, Torsion) and frozenset(cv.atoms[1:3]) in bonds)

    @cached_property
    def masses(self) -> np.ndarray:
        """float64, shape (n_atoms,), amu; 0 for virtual sites."""
        return particle_masses(self.system)

    @cached_property
    def bonds(self) -> np.ndarray:
        """int64, shape (n_bonds, 2)."""
        return bonded_pairs(self.topology)

    @cached_property
    def constraints(self) -> tuple[tuple[int, int, float], ...]:
        """(i, j, distance in nm) of every constraint."""
        return constraints_of(self.system)

    @cached_property
    def physical_xml(self) -> str:
        """The unbiased system, serialised by OpenMM."""
        return openmm.XmlSerializer.serialize(self.system)

    def trajectory(self, positions: np.ndarray) -> mdtraj.Trajectory:
        """Return a trajectory of positions (n, n_atoms, 3) or (n_atoms, 3) in nm, which mdtraj keeps as float32."""
        return mdtraj.Trajectory(np.asarray(positions, dtype=np.float64), self.mdtraj_topology)

    def evaluate_cvs(self, positions: np.ndarray) -> np.ndarray:
        """Return the CVs, float64, shape (n, n_cvs), of positions (n, n_atoms, 3) in nm.

        Configurations in free space are centred first, which no CV may notice: the single precision of mdtraj then
        suffices for a molecule that has drifted far.
        """
        positions = np.asarray(positions, dtype=np.float64)
        if positions.ndim != 3 or positions.shape[1:] != (self.n_atoms, 3):
            raise ValueError(f"positions must have shape (n, {self.n_atoms}, 3), got {positions.shape}")
        values = np.empty((len(positions), len(self.cvs)))
        for start in range(0, len(positions), CHUNK):
            chunk = positions[start : start + CHUNK]
            trajectory = self.trajectory(chunk if self.tied else chunk - chunk.mean(axis=1, keepdims=True))
            for k, cv in enumerate(self.cvs):
                values[start : start + CHUNK, k] = cv.evaluate(trajectory)
        return values

    def biased_system(self) -> tuple[openmm.System, tuple[str, ...], int]:
        """Return (a copy of the system with an umbrella per CV, their parameter prefixes, the physical force groups).

        The umbrellas share one force group that nothing else uses; the bit mask, for `getState(groups=...)`, holds
        all other groups. Umbrella k is steered by `{prefix}_center` and `{prefix}_force_constant`, 0 at first.

        Raises
        ------
        InputError
            if all 32 force groups are in use.
        """
        system = copy.deepcopy(self.system)
        free = set(range(FORCE_GROUPS)) - {force.getForceGroup() for force in system.getForces()}
        if not free:
            raise InputError(f"all {FORCE_GROUPS} force groups are in use: leave one free for the umbrellas")
        group = max(free)
        taken = {name for force in system.getForces() for name in parameter_names(force)}
        stem = "sgm"
        while any(name.startswith(stem) for name in taken):
            stem += "_"
        prefixes = tuple(f"{stem}{k}" for k in range(len(self.cvs)))
        for cv, prefix in zip(self.cvs, prefixes, strict=True):
            bias = cv.bias_force(prefix)
            bias.setForceGroup(group)
            system.addForce(bias)
        return system, prefixes, (2**FORCE_GROUPS - 1) & ~(1 << group)

    def cv_gradients(self, positions: np.ndarray, which: Sequence[int]) -> np.ndarray:
        """Return ∂CV/∂x from the CVs' OpenMM forces, float64, shape (n, len(which), n_atoms, 3), CV unit per nm.

        positions : float64, shape (n, n_atoms, 3), nm; no force of the molecule itself is evaluated
        """
        context = self._cv_context()
        gradients = np.empty((len(positions), len(which), self.n_atoms, 3))
        for row, configuration in enumerate(positions):
            context.setPositions(configuration)
            for column, k in enumerate(which):
                forces = context.getState(forces=True, groups={k}).getForces(asNumpy=True)
                gradients[row, column] = -forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        return gradients

    def _cv_context(self) -> openmm.Context:
        """Return a context in which force group k holds CV k and nothing else."""
        probe = openmm.System()
        for _ in range(self.n_atoms):
            probe.addParticle(1.0)
        for k, cv in enumerate(self.cvs):
            force = cv.force()
            force.setForceGroup(k)
            probe.addForce(force)
        platform = openmm.Platform.getPlatformByName("Reference")
        return openmm.Context(probe, openmm.VerletIntegrator(0.001), platform)

    def _check_cvs_agree(self) -> None:
        """Refuse a CV whose mdtraj function and OpenMM force differ at the starting positions, or one given twice."""
        forces = [openmm.XmlSerializer.serialize(cv.force()) for cv in self.cvs]
        for k, cv in enumerate(self.cvs):
            if forces[k] in forces[:k]:
                raise InputError(f"CVs '{self.cvs[forces.index(forces[k])].name}' and '{cv.name}' are the same")
        values = self.evaluate_cvs(self.positions[None])[0]
        context = self._cv_context()
        context.setPositions(self.positions)
        for k, (cv, value) in enumerate(zip(self.cvs, values, strict=True)):
            energy = context.getState(energy=True, groups={k}).getPotentialEnergy()
            force_value = energy.value_in_unit(unit.kilojoule_per_mole)
            if not abs(cv.difference(value, force_value)) <= CV_TOLERANCE * (1 + abs(value)):
                raise InputError(
                    f"CV '{cv.name}' is {value:.6g} by mdtraj and {force_value:.6g} by its OpenMM force; "
                    "both must give the same number"
                )
            if not self.tied and isinstance(cv, ExpressionCV):
                self._check_invariant(cv, k, context, energy)

    def _check_invariant(self, cv: CollectiveVariable, k: int, context: openmm.Context, energy: Any) -> None:
        """Refuse an expression that changes when the molecule in free space is moved and turned."""
        turn = Rotation.from_rotvec([0.7, -0.4, 1.1]).as_matrix()
        context.setPositions(self.positions @ turn.T + np.array([0.3, -0.2, 0.5]))
        moved = context.getState(energy=True, groups={k}).getPotentialEnergy()
        change = cv.difference(*(e.value_in_unit(unit.kilojoule_per_mole) for e in (moved, energy)))
        context.setPositions(self.positions)
        if not abs(change) <= 1e-6:
            raise InputError(
                f"CV '{cv.name}' changes when the molecule is moved and turned, by {float(change):.3g}: build it of "
                "distances, or tie the system to a place with a CustomExternalForce"
            )

    def _check_start(self) -> None:
        """Refuse a start outside the range of a CV."""
        for cv, value in zip(self.cvs, self.evaluate_cvs(self.positions[None])[0], strict=True):
            if cv.period is None and not cv.minimum <= value <= cv.maximum:
                unit_name = f" {cv.unit}" if cv.unit else ""
                raise InputError(
                    f"CV '{cv.name}' is {value:.4g}{unit_name} at the start, outside its range from {cv.minimum:g} to "
                    f"{cv.maximum:g}{unit_name}: give a range that holds the starting structure"
                )


def bin_counts(bins: Sequence[int] | int | None, cvs: Sequence[CollectiveVariable]) -> tuple[int, ...]:
    """Return bins per CV from one number for all, one per CV, or nothing."""
    if bins is None or (np.ndim(bins) and not np.size(bins)):
        return tuple(PERIODIC_BINS if cv.period is not None else BINS for cv in cvs)
    try:
        result = tuple(index(b) for b in (bins if isinstance(bins, Sequence) else [bins] * len(cvs)))
    except TypeError:
        raise InputError(f"bins must be whole numbers, one for each of the {len(cvs)} CVs, got {bins!r}") from None
    if len(result) != len(cvs) or min(result) < 2:
        raise InputError(f"bins must be 2 or more for each of the {len(cvs)} CVs, got {bins!r}")
    if max(result) > MOST_BINS_ALONG:
        raise InputError(f"a CV has at most {MOST_BINS_ALONG:,} bins, got {max(result)}: give fewer")
    if math.prod(result) > MOST_BINS:
        raise InputError(f"a surface has at most {MOST_BINS:,} bins, got {' x '.join(map(str, result))}: give fewer")
    return result


def _without_what_does_nothing(system: openmm.System, positions: np.ndarray) -> openmm.System:
    """Return a copy without AndersenThermostat forces, and without restraints to a place that are switched off."""
    off = switched_off(system, positions)
    if off:
        now = {name: value for k in off for name, value in default_parameters(system.getForce(k)).items()}
        zero = f" with {', '.join(f'{name} = {value:g}' for name, value in now.items())}" if now else ""
        warnings.warn(
            f"{describe_forces(system, off)} is 0 at all places{zero} and is left out: the molecule is sampled as one "
            "that nothing ties to a place by it",
            stacklevel=4,
        )
    return without_forces(system, lambda k, force: k in off or isinstance(force, openmm.AndersenThermostat))


def _has_external_force(system: openmm.System) -> bool:
    return any(isinstance(force, openmm.CustomExternalForce) for force in system.getForces())
