"""Whether a user's simulation is of the molecule and the ensemble that a sampler was made for."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import openmm
from openmm import app, unit
from scipy.spatial.transform import Rotation

from .dynamics import force_groups, parts_of, refuse_another_ensemble, thermostats
from .system import MolecularSystem
from .units import InputError

__all__ = ["SameSimulation"]

TEMPERATURE_TOLERANCE_K = 1e-3
LENGTH_TOLERANCE_NM = 1e-6
ENERGY_TOLERANCE_KJ_MOL, RELATIVE_TOLERANCE = 0.1, 1e-5
"""Largest difference of energies that is none; the second is for single precision."""
TURN, SHIFT_NM = (0.7, -0.4, 1.1), (0.3, -0.2, 0.5)
"""A rotation vector and a translation like any other."""


class SameSimulation:
    """The check of simulations that a generator's moves are made in; it leaves them as they are.

    What must agree, since the weights rest on it: masses, constraints, and the temperature of every thermostat. The
    energy in the weights is the simulation's own (see `UnbiasedMoves`): where it differs from the sampler's the moves
    stay exact for the simulation's ensemble and are accepted less often, which is a warning. It must not depend on
    where the molecule is and how it is turned: generated configurations all stand in one place, in one orientation.

    >>> SameSimulation(molecule).check(simulation, configurations)
    """

    def __init__(self, molecule: MolecularSystem) -> None:
        self.molecule = molecule
        self._compared: tuple[Any, ...] = ()

    def check(self, simulation: app.Simulation, configurations: np.ndarray, *, dynamics: bool = True) -> None:
        """Refuse a simulation of another molecule or ensemble.

        Energies are compared once for a context, with its force groups and parameters as they are then; that takes as
        many evaluations as there are configurations, and two more, which count in no budget.

        Parameters
        ----------
        configurations : float64, shape (n, n_atoms, 3), nm; where energies are compared, besides the context's own
        dynamics : whether the simulation's own dynamics must be at the sampler's temperature, and not just no other

        Raises
        ------
        InputError
            for other masses, constraints or temperatures, dynamics of another ensemble or that keeps its energy, or
            forces that depend on the molecule's place or orientation.

        Warns
        -----
        UserWarning
            where the energies differ by more than a constant, or a CustomIntegrator's temperature cannot be known.
        """
        self._check_masses(simulation.system)
        self._check_constraints(simulation.system)
        if dynamics:
            refuse_another_ensemble(simulation.integrator)
        self._check_temperature(simulation, dynamics)
        context, groups = simulation.context, force_groups(simulation.integrator)
        known = (weakref.ref(context), groups, dict(context.getParameters()))
        if self._compared != known:
            self._check_energies(context, groups, configurations)
            self._compared = known

    def _check_masses(self, theirs: openmm.System) -> None:
        masses = [theirs.getParticleMass(i).value_in_unit(unit.dalton) for i in range(theirs.getNumParticles())]
        if len(masses) != self.molecule.n_atoms or not np.allclose(masses, self.molecule.masses):
            raise InputError("this simulation is of another molecule than the sampler's: the masses differ")

    def _check_constraints(self, theirs: openmm.System) -> None:
        ours = {frozenset((i, j)): length for i, j, length in self.molecule.constraints}
        found = {}
        for k in range(theirs.getNumConstraints()):
            i, j, length = theirs.getConstraintParameters(k)
            found[frozenset((i, j))] = length.value_in_unit(unit.nanometer)
        for pair in sorted(ours.keys() | found.keys(), key=sorted):
            lengths = ours.get(pair), found.get(pair)
            if None in lengths or abs(lengths[0] - lengths[1]) > LENGTH_TOLERANCE_NM:  # type: ignore[operator]
                there, here = ("free" if n is None else f"constrained to {n:g} nm" for n in lengths)
                first, second = sorted(pair)
                raise InputError(
                    f"the distance of atoms {first} and {second} is {here} in this simulation and {there} in the "
                    "sampler's: make a sampler for each set of constraints"
                )

    def _check_temperature(self, simulation: app.Simulation, dynamics: bool) -> None:
        ours, found = self.molecule.temperature_k, False
        for source, temperature in thermostats(simulation):
            found = True
            if abs(temperature - ours) > TEMPERATURE_TOLERANCE_K:
                raise InputError(
                    f"this simulation is at {temperature:g} K ({source}), the sampler at {ours:g} K: "
                    "its generator and weights are of that temperature"
                )
        if found or not dynamics:
            return
        parts = parts_of(simulation.integrator)
        names = [type(part).__name__ for part in parts]
        if all(isinstance(part, openmm.CustomIntegrator) for part in parts):
            warnings.warn(
                f"the temperature of {' and '.join(names)} cannot be read: moves are made at {ours:g} K, so its "
                "dynamics must be at that temperature",
                stacklevel=5,
            )
            return
        raise InputError(
            f"{' and '.join(names)} without a thermostat keeps the energy between moves, which are of an ensemble at "
            f"{ours:g} K: use a LangevinMiddleIntegrator, or add an AndersenThermostat, at that temperature"
        )

    def _check_energies(self, context: openmm.Context, groups: int, configurations: np.ndarray) -> None:
        with _put_back(context) as here:
            own = _energies(context, groups, here[None])[0]
            if not self.molecule.tied:
                centre = here.mean(axis=0)
                moved = (here - centre) @ Rotation.from_rotvec(TURN).as_matrix().T + centre + np.array(SHIFT_NM)
                change = _energies(context, groups, moved[None])[0] - own
                if not abs(change) <= ENERGY_TOLERANCE_KJ_MOL + RELATIVE_TOLERANCE * abs(own):
                    raise InputError(
                        f"the energy of this simulation changes by {change:.3g} kJ/mol when the molecule is moved and "
                        "turned as a whole, of which a generator of its shapes knows nothing: take out the force that "
                        "depends on place or orientation"
                    )
            points = np.concatenate([here[None], configurations])
            theirs = np.concatenate([[own], _energies(context, groups, configurations)])
        differences = theirs - self._own_energies(context, points)
        spread = float(np.ptp(differences)) if np.isfinite(differences).all() else np.inf
        if not spread <= ENERGY_TOLERANCE_KJ_MOL + RELATIVE_TOLERANCE * float(np.abs(theirs).max()):
            warnings.warn(
                f"the energies of this simulation and of the sampler's molecule differ, by up to {spread:.3g} kJ/mol "
                f"from one configuration to another: weights use this simulation's own, so its ensemble stays "
                "right, but fewer moves are accepted, and the sampler's surface is not that of this simulation",
                stacklevel=5,
            )

    def _own_energies(self, like: openmm.Context, points: np.ndarray) -> np.ndarray:
        """Return the sampler's energies (n,), kJ/mol, in a context on the platform of another."""
        platform = like.getPlatform()
        properties = {
            name: platform.getPropertyValue(like, name)
            for name in platform.getPropertyNames()
            if name in ("Precision", "DeviceIndex")
        }
        context = openmm.Context(self.molecule.system, openmm.VerletIntegrator(0.001), platform, properties)
        return _energies(context, -1, points)


@contextlib.contextmanager
def _put_back(context: openmm.Context) -> Iterator[np.ndarray]:
    """Within, a context may be put elsewhere; gives its positions, float64, shape (n_atoms, 3), nm."""
    state = context.getState(positions=True, velocities=True)
    try:
        yield np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    finally:
        context.setPositions(state.getPositions())
        context.setVelocities(state.getVelocities())


def _energies(context: openmm.Context, groups: int, points: np.ndarray) -> np.ndarray:
    """Return the potential energies (n,), kJ/mol, of configurations (n, n_atoms, 3), nm."""
    energies = np.empty(len(points))
    for k, point in enumerate(points):
        context.setPositions(point)
        context.computeVirtualSites()
        energy: Any = context.getState(energy=True, groups=groups).getPotentialEnergy()
        energies[k] = energy.value_in_unit(unit.kilojoule_per_mole)
    return energies
