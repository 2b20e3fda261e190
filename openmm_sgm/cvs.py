"""Collective variables: values from mdtraj, forces from OpenMM, and the unit, period and range of each."""

from __future__ import annotations

import copy
import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any, Literal

import mdtraj
import numpy as np
import openmm
from openmm import unit as units
from openmm.app.metadynamics import BiasVariable

from .expressions import Expression
from .units import InputError, check_range, strip_units

__all__ = [
    "CV_KINDS",
    "RMSD",
    "Angle",
    "CollectiveVariable",
    "ContactNumber",
    "CustomCV",
    "Distance",
    "ExpressionCV",
    "Position",
    "RadiusOfGyration",
    "Torsion",
    "as_cvs",
    "from_bias_variable",
    "strip_values",
]

MAXIMUM_CVS = 3
MOST_WINDOWS = 10_000
PERIODIC_WINDOWS = 18
WINDOWS = 12
LEAST_RANGE, MOST_VALUE = 1e-9, 1e9
FORCE_CONSTANTS = (1e-12, 1e12)
"""Ranges of a CV and force constants (in its unit) with which numbers stay finite."""
RESERVED_NAMES = ("free_energy_kj_mol", "std_error_kj_mol", "log_weight")
Values = Callable[[mdtraj.Trajectory], np.ndarray]
Unit = Literal["rad", "nm", ""]
HALF_TURN = math.pi + 1e-6
FULL_TURN = 2 * math.pi + 1e-6
IN_RADIANS = "angles are in radians, or Quantities such as -60*openmm.unit.degrees"
_UNITS: dict[str, units.Unit] = {"rad": units.radian, "nm": units.nanometer, "": units.dimensionless}


class CollectiveVariable(ABC):
    """A function of the configuration that labels and biases it.

    A CV is known twice, to mdtraj (`evaluate`) and to OpenMM (`force`), and the two must agree; the test suite holds
    every kind to that. mdtraj stores positions in single precision, so values carry errors of about 1e-6 (rad or nm).
    A new kind implements `_values` and `force`, calls this constructor, and enters `CV_KINDS`:

    >>> phi = Torsion("phi", (4, 6, 8, 14))
    >>> end_to_end = Distance("end_to_end", (1, 18), minimum=0.3, maximum=0.9)
    >>> phi.evaluate(trajectory)  # radians, shape (n_frames,)

    Attributes
    ----------
    name : the column in every output file
    atoms : zero-based indices; empty where a custom CV did not say
    unit : "rad", "nm" or "" (dimensionless)
    period : of a periodic CV, whose values lie in [−period/2, period/2); None otherwise
    minimum, maximum : the range that windows and surfaces cover; ±period/2 for a periodic CV
    windows : number of umbrella windows along this CV, or None to leave the choice to the sampler
    force_constant : of those windows, kJ/mol/unit², or None to leave the choice to the sampler
    """

    def __init__(
        self,
        name: str,
        atoms: Iterable[int],
        unit: Unit,
        *,
        period: Any = None,
        minimum: Any = None,
        maximum: Any = None,
        windows: int | None = None,
        force_constant: Any = None,
    ) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name):
            raise InputError(f"the name of a CV must be letters, digits or any of _ . + -, got {name!r}")
        if name in RESERVED_NAMES:
            raise InputError(f"'{name}' is a column of the output and cannot be the name of a CV")
        if unit not in _UNITS:
            raise InputError(f"CV '{name}': the unit must be one of {', '.join(map(repr, _UNITS))}, got {unit!r}")
        target = _UNITS[unit]
        energy = units.kilojoule_per_mole
        self.name = name
        self.atoms = _atom_tuple(name, atoms)
        self.unit: Unit = unit
        self.period = _number(name, "period", period, target)
        self.minimum = _number(name, "minimum", minimum, target)
        self.maximum = _number(name, "maximum", maximum, target)
        self.windows = None if windows is None else _integer(name, "windows", windows)
        self.force_constant = _number(name, "force_constant", force_constant, energy / target**2 if unit else energy)
        if self.period is not None:
            if self.period <= 0:
                raise InputError(f"CV '{name}': the period must be positive, got {self.period}")
            if self.minimum is not None or self.maximum is not None:
                raise InputError(f"CV '{name}' is periodic and always covers its period: give no minimum or maximum")
            self.minimum, self.maximum = -self.period / 2, self.period / 2
        if self.minimum is None or self.maximum is None:
            raise InputError(f"CV '{name}' is not periodic and needs a minimum and a maximum")
        if self.minimum >= self.maximum:
            raise InputError(f"CV '{name}': the minimum must be below the maximum, got {minimum} and {maximum}")
        if self.maximum - self.minimum < LEAST_RANGE or max(-self.minimum, self.maximum) > MOST_VALUE:
            raise InputError(
                f"CV '{name}': its range must lie within ±{MOST_VALUE:g} and be {LEAST_RANGE:g} wide or more, got "
                f"{self.minimum:g} to {self.maximum:g}"
            )
        if self.windows is not None and self.windows < 1:
            raise InputError(f"CV '{name}': windows must be 1 or more, got {windows}")
        if self.windows is not None and self.windows > MOST_WINDOWS:
            raise InputError(f"CV '{name}': windows must be {MOST_WINDOWS:,} or fewer, got {windows}")
        if self.force_constant is not None and self.force_constant <= 0:
            raise InputError(f"CV '{name}': the force constant must be positive, got {force_constant}")
        if self.force_constant is not None:
            check_range(f"CV '{name}': the force constant", self.force_constant, *FORCE_CONSTANTS)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, atoms={self.atoms})"

    @property
    def window_count(self) -> int:
        """Windows along this CV: where it does not say, 18 a period, or 12 over a range."""
        return self.windows or (WINDOWS if self.period is None else PERIODIC_WINDOWS)

    def for_system(self, n_atoms: int) -> CollectiveVariable:
        """Return the CV in a system of so many atoms: itself, but for what must know their number."""
        return self

    @abstractmethod
    def force(self) -> openmm.Force:
        """Return a new force whose energy, as a number in kJ/mol, is the value of the CV."""

    @abstractmethod
    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        """Return the values, shape (n_frames,), with mdtraj; wrapping and dtype are left to `evaluate`."""

    def evaluate(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        """Return the CV of every frame: float64, shape (n_frames,), in `unit`, periodic values wrapped."""
        n = trajectory.n_frames
        if n == 0:
            return np.zeros(0)
        values = np.asarray(self._values(trajectory), dtype=np.float64)
        if values.size != n:
            raise InputError(f"CV '{self.name}' must return one value per frame, got shape {values.shape} for {n}")
        return self.wrap(values.reshape(n))

    def wrap(self, values: np.ndarray) -> np.ndarray:
        """Return values of any shape in [−period/2, period/2); unchanged if the CV is not periodic."""
        values = np.asarray(values, dtype=np.float64)
        if self.period is None:
            return values
        wrapped = values - self.period * np.floor(values / self.period + 0.5)
        # Rounding can leave a value on the open end, or a hair below the closed one.
        return np.where((wrapped >= self.period / 2) | (wrapped < -self.period / 2), -self.period / 2, wrapped)

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a − b, wrapped into [−period/2, period/2) if the CV is periodic."""
        return self.wrap(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))

    def strip_units(self, value: Any) -> float:
        """Return a value of the CV, a number or a Quantity, as a number in `unit`, or raise `InputError`.

        A bare number for an angle that is larger than a full turn, and than all values of the CV, is one in degrees.
        """
        number = _number(self.name, "a value", value, _UNITS[self.unit])
        if number is None:
            raise InputError(f"CV '{self.name}': a value is needed, got None")
        if self.unit == "rad" and not units.is_quantity(value):
            assert self.minimum is not None
            assert self.maximum is not None
            if abs(number) > max(FULL_TURN, abs(self.minimum), abs(self.maximum)):
                raise InputError(f"CV '{self.name}': {number:g} is more than a full turn: {IN_RADIANS}")
        return number

    def strip_force_constant(self, value: Any) -> float:
        """Return an umbrella's force constant, a number or a Quantity, in kJ/mol/unit², or raise `InputError`."""
        target = units.kilojoule_per_mole / _UNITS[self.unit] ** 2 if self.unit else units.kilojoule_per_mole
        number = _number(self.name, "a force constant", value, target)
        if number is None:
            raise InputError(f"CV '{self.name}': a force constant is needed, got None")
        return number

    def bias_force(self, prefix: str) -> openmm.Force:
        """Return the umbrella ½ k d², d the (wrapped) difference of CV and centre, off until told otherwise.

        The centre and k are the global parameters `{prefix}_center` (in `unit`) and `{prefix}_force_constant`
        (kJ/mol/unit²), both 0 by default.
        """
        bias = openmm.CustomCVForce(self._bias_energy("cv_value", prefix))
        bias.addCollectiveVariable("cv_value", self.force())
        return self._with_bias_parameters(bias, prefix)

    def _bias_energy(self, variable: str, prefix: str) -> str:
        """Return the energy expression of the umbrella on `variable`."""
        delta = f"{variable}-{prefix}_center"
        if self.period is None:
            return f"0.5*{prefix}_force_constant*({delta})^2"
        return (
            f"0.5*{prefix}_force_constant*wrapped^2; "
            f"wrapped=delta-{self.period!r}*floor(delta/{self.period!r}+0.5); delta={delta}"
        )

    @staticmethod
    def _with_bias_parameters(bias: Any, prefix: str) -> openmm.Force:
        bias.addGlobalParameter(f"{prefix}_center", 0.0)
        bias.addGlobalParameter(f"{prefix}_force_constant", 0.0)
        bias.setName(f"{prefix}_umbrella")
        return bias


class Torsion(CollectiveVariable):
    """Dihedral angle of four atoms, radians in [−π, π)."""

    def __init__(
        self, name: str, atoms: Iterable[int], *, windows: int | None = None, force_constant: Any = None
    ) -> None:
        super().__init__(name, atoms, "rad", period=2 * math.pi, windows=windows, force_constant=force_constant)
        _require_count(self, 4)

    def force(self) -> openmm.Force:
        return self._torsion(openmm.CustomTorsionForce("theta"))

    def bias_force(self, prefix: str) -> openmm.Force:
        bias = openmm.CustomTorsionForce(self._bias_energy("theta", prefix))
        return self._with_bias_parameters(self._torsion(bias), prefix)

    def _torsion(self, force: openmm.CustomTorsionForce) -> openmm.CustomTorsionForce:
        force.addTorsion(*self.atoms, [])
        return force

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        return mdtraj.compute_dihedrals(trajectory, [self.atoms], periodic=False)


class _RangedCV(CollectiveVariable):
    """A CV on a line, made of `_count` atoms (or more) and in `_unit`: what its kinds share is the constructor."""

    _unit: Unit
    _count: int
    _or_more = False
    _largest = np.inf

    def __init__(
        self,
        name: str,
        atoms: Iterable[int],
        minimum: Any = None,
        maximum: Any = None,
        *,
        windows: int | None = None,
        force_constant: Any = None,
    ) -> None:
        super().__init__(
            name, atoms, self._unit, minimum=minimum, maximum=maximum, windows=windows, force_constant=force_constant
        )
        _require_count(self, self._count, self._or_more)
        assert self.minimum is not None
        assert self.maximum is not None
        if self.minimum < 0 or self.maximum > self._largest:
            most = f" and is at most {self._largest:.4g} {self._unit}" if np.isfinite(self._largest) else ""
            given = f"{self.minimum:g} to {self.maximum:g} {self._unit}"
            raise InputError(f"CV '{name}' cannot be below 0{most}, got a range from {given}")


class Distance(_RangedCV):
    """Distance of two atoms, nm."""

    _unit: Unit = "nm"
    _count = 2

    def force(self) -> openmm.Force:
        return self._bond(openmm.CustomBondForce("r"))

    def bias_force(self, prefix: str) -> openmm.Force:
        return self._with_bias_parameters(self._bond(openmm.CustomBondForce(self._bias_energy("r", prefix))), prefix)

    def _bond(self, force: openmm.CustomBondForce) -> openmm.CustomBondForce:
        force.addBond(*self.atoms, [])
        return force

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        return mdtraj.compute_distances(trajectory, [self.atoms], periodic=False)


class Position(CollectiveVariable):
    """One Cartesian coordinate of a particle, nm; for particles that an external force ties to a place."""

    def __init__(
        self,
        name: str,
        atoms: Iterable[int],
        axis: Literal["x", "y", "z"],
        minimum: Any = None,
        maximum: Any = None,
        *,
        windows: int | None = None,
        force_constant: Any = None,
    ) -> None:
        super().__init__(
            name, atoms, "nm", minimum=minimum, maximum=maximum, windows=windows, force_constant=force_constant
        )
        _require_count(self, 1)
        if axis not in ("x", "y", "z"):
            raise InputError(f"CV '{name}': the axis must be 'x', 'y' or 'z', got {axis!r}")
        self.axis = axis

    def force(self) -> openmm.Force:
        return self._particle(openmm.CustomExternalForce(self.axis))

    def bias_force(self, prefix: str) -> openmm.Force:
        bias = openmm.CustomExternalForce(self._bias_energy(self.axis, prefix))
        return self._with_bias_parameters(self._particle(bias), prefix)

    def _particle(self, force: openmm.CustomExternalForce) -> openmm.CustomExternalForce:
        force.addParticle(self.atoms[0], [])
        return force

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        return trajectory.xyz[:, self.atoms[0], "xyz".index(self.axis)]


class Angle(_RangedCV):
    """Angle of three atoms about the second, radians in [0, π].

    mdtraj takes the arc cosine in single precision: within 0.01 rad of 0 and π values are good to 1e-3 rad only.
    """

    _unit: Unit = "rad"
    _count = 3
    _largest = np.pi + 1e-6

    def force(self) -> openmm.Force:
        return self._angle(openmm.CustomAngleForce("theta"))

    def bias_force(self, prefix: str) -> openmm.Force:
        bias = openmm.CustomAngleForce(self._bias_energy("theta", prefix))
        return self._with_bias_parameters(self._angle(bias), prefix)

    def _angle(self, force: openmm.CustomAngleForce) -> openmm.CustomAngleForce:
        force.addAngle(*self.atoms, [])
        return force

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        return mdtraj.compute_angles(trajectory, [self.atoms], periodic=False)


class RadiusOfGyration(_RangedCV):
    """Radius of gyration of a group of atoms, nm: the root mean square distance from their geometric centre.

    Every atom counts alike, whatever its mass, as in `mdtraj.compute_rg` without masses. The force uses
    Rg² = Σ_{i<j} r_ij² / n², which every OpenMM can compute (its RGForce came later than 8.3).
    """

    _unit: Unit = "nm"
    _count = 2
    _or_more = True

    def force(self) -> openmm.Force:
        return self._pairs(openmm.CustomCVForce(f"sqrt(squares)/{len(self.atoms)}"))

    def bias_force(self, prefix: str) -> openmm.Force:
        energy = f"{self._bias_energy('rg', prefix)}; rg=sqrt(squares)/{len(self.atoms)}"
        return self._with_bias_parameters(self._pairs(openmm.CustomCVForce(energy)), prefix)

    def _pairs(self, force: openmm.CustomCVForce) -> openmm.CustomCVForce:
        squares = openmm.CustomBondForce("r^2")
        for pair in itertools.combinations(self.atoms, 2):
            squares.addBond(*pair, [])
        force.addCollectiveVariable("squares", squares)
        return force

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        return mdtraj.compute_rg(trajectory.atom_slice(sorted(self.atoms)))


class RMSD(_RangedCV):
    """Root mean square deviation, nm, from a reference after superposition; both on the same `atoms`.

    mdtraj works in single precision: values are good to 1e-5 nm, but near 0 only to about 3e-4 nm.

    Parameters
    ----------
    reference : nm or a Quantity; positions of all atoms of the system, shape (n_atoms, 3), of which `atoms` are used,
        or of `atoms` alone, in their order, shape (len(atoms), 3)
    """

    _unit: Unit = "nm"
    _count = 3
    _or_more = True

    def __init__(
        self,
        name: str,
        atoms: Iterable[int],
        reference: Any,
        minimum: Any = None,
        maximum: Any = None,
        *,
        windows: int | None = None,
        force_constant: Any = None,
    ) -> None:
        super().__init__(name, atoms, minimum, maximum, windows=windows, force_constant=force_constant)
        self.reference = np.array(strip_units(reference, units.nanometer), dtype=np.float64)
        if self.reference.ndim != 2 or self.reference.shape[1] != 3 or not np.isfinite(self.reference).all():
            raise InputError(f"CV '{name}': the reference must be finite positions of shape (n_atoms, 3) in nm")
        if len(self.reference) <= max(self.atoms) and len(self.reference) != len(self.atoms):
            raise InputError(
                f"CV '{name}': the reference must hold all atoms of the system or the {len(self.atoms)} of the CV, but "
                f"has {len(self.reference)} and atom {max(self.atoms)} is asked for"
            )

    def for_system(self, n_atoms: int) -> RMSD:
        if len(self.reference) == n_atoms or len(self.reference) != len(self.atoms) or max(self.atoms) >= n_atoms:
            return self
        whole = copy.copy(self)
        whole.reference = np.zeros((n_atoms, 3))
        whole.reference[list(self.atoms)] = self.reference
        return whole

    def force(self) -> openmm.Force:
        if len(self.reference) <= max(self.atoms):
            raise InputError(
                f"CV '{self.name}': OpenMM's RMSDForce must know how many atoms the system has: take the force of "
                "for_system(n_atoms), or give a reference with all atoms"
            )
        return openmm.RMSDForce(self.reference, self.atoms)

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        whole = self.for_system(trajectory.n_atoms).reference
        if trajectory.n_atoms != len(whole):
            raise InputError(
                f"CV '{self.name}': the reference has {len(self.reference)} atoms and the system {trajectory.n_atoms}"
            )
        # precentered would mean all atoms, not `atoms`; and mdtraj centres its arguments, so it gets slices (copies).
        order = sorted(self.atoms)  # in which mdtraj slices, whatever it is given
        target = trajectory.atom_slice(order)
        selected = whole[order]
        reference = mdtraj.Trajectory(selected - selected.mean(axis=0), target.topology)
        return mdtraj.rmsd(target, reference, parallel=False, precentered=False)


class ContactNumber(CollectiveVariable):
    """Number of contacts, Σ (1 − (r/r₀)⁶) / (1 − (r/r₀)¹²) over pairs of atoms; dimensionless.

    The fraction is the rational switching function 1 / (1 + (r/r₀)⁶), which is how it is computed: no 0/0 at r = r₀.

    Parameters
    ----------
    cutoff : r₀, nm or a Quantity; a pair at this distance counts one half
    pairs, groups : either pairs of atoms, or two groups without common atoms, every pair between which counts
    """

    def __init__(
        self,
        name: str,
        cutoff: Any,
        minimum: Any = None,
        maximum: Any = None,
        *,
        pairs: Iterable[Sequence[int]] | None = None,
        groups: Sequence[Iterable[int]] | None = None,
        windows: int | None = None,
        force_constant: Any = None,
    ) -> None:
        if (pairs is None) == (groups is None):
            raise InputError(f"CV '{name}': give either pairs of atoms or two groups of atoms")
        try:
            if groups is not None:
                if len(groups) != 2:
                    raise InputError(f"CV '{name}': groups must be two lists of atoms, got {len(groups)}")
                first, second = (_atom_tuple(name, group) for group in groups)
                pairs = itertools.product(first, second)
            self.pairs = tuple(_atom_tuple(name, pair) for pair in pairs or ())
        except TypeError:
            raise InputError(f"CV '{name}': pairs and groups must be lists of lists of atom indices") from None
        if not self.pairs or any(len(pair) != 2 for pair in self.pairs):
            raise InputError(f"CV '{name}': a contact is a pair of two atoms, and at least one is needed")
        if len({frozenset(pair) for pair in self.pairs}) < len(self.pairs):
            raise InputError(f"CV '{name}': a pair of atoms is given twice")
        super().__init__(
            name,
            sorted({atom for pair in self.pairs for atom in pair}),
            "",
            minimum=minimum,
            maximum=maximum,
            windows=windows,
            force_constant=force_constant,
        )
        self.cutoff: float = _number(name, "cutoff", cutoff, units.nanometer) or 0.0
        if self.cutoff <= 0:
            raise InputError(f"CV '{name}': the cutoff must be positive, got {cutoff}")

    def force(self) -> openmm.Force:
        force = openmm.CustomBondForce(f"1/(1+(r/{self.cutoff!r})^6)")
        for pair in self.pairs:
            force.addBond(*pair, [])
        return force

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        distances = mdtraj.compute_distances(trajectory, self.pairs, periodic=False).astype(np.float64)
        return (1 / (1 + (distances / self.cutoff) ** 6)).sum(axis=1)


class ExpressionCV(CollectiveVariable):
    """An algebraic expression of the coordinates of its atoms, x1, y1, z1 of the first and so on, in nm.

    >>> ExpressionCV("angle", (0,), "atan2(y1, x1)", -1.5, 1.5, unit="rad")
    >>> ExpressionCV("transfer", (3, 8, 12), "distance(p1, p2) - distance(p2, p3)", -0.2, 0.2, unit="nm")

    In free space it must not change when the molecule is moved or turned.

    Parameters
    ----------
    expression : in OpenMM's notation, see `expressions.Expression`
    """

    def __init__(
        self,
        name: str,
        atoms: Iterable[int],
        expression: str,
        minimum: Any = None,
        maximum: Any = None,
        *,
        unit: Unit = "",
        period: Any = None,
        windows: int | None = None,
        force_constant: Any = None,
    ) -> None:
        super().__init__(
            name,
            atoms,
            unit,
            period=period,
            minimum=minimum,
            maximum=maximum,
            windows=windows,
            force_constant=force_constant,
        )
        _require_count(self, 1, or_more=True)
        variables = [f"{axis}{k + 1}" for k in range(len(self.atoms)) for axis in "xyz"]
        try:
            self.expression = Expression(expression, variables)
        except InputError as error:
            raise InputError(f"CV '{name}': {error}") from None
        taken = self.expression.defined & {"cv_value", "wrapped", "delta"}
        if taken:
            raise InputError(f"CV '{name}': the expression must not define {', '.join(sorted(taken))}")

    def force(self) -> openmm.Force:
        return self._compound(self.expression.text)

    def bias_force(self, prefix: str) -> openmm.Force:
        bias = self._compound(f"{self._bias_energy('cv_value', prefix)}; cv_value={self.expression.text}")
        return self._with_bias_parameters(bias, prefix)

    def _compound(self, energy: str) -> openmm.CustomCompoundBondForce:
        force = openmm.CustomCompoundBondForce(len(self.atoms), energy)
        force.addBond(self.atoms, [])
        return force

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        columns = trajectory.xyz[:, list(self.atoms)].astype(np.float64).reshape(trajectory.n_frames, -1).T
        names = [f"{axis}{k + 1}" for k in range(len(self.atoms)) for axis in "xyz"]
        return self.expression(dict(zip(names, columns, strict=True)))


class CustomCV(CollectiveVariable):
    """Any CV, given as an OpenMM force and as a function of an mdtraj trajectory.

    >>> force = openmm.CustomBondForce("log(r)")
    >>> force.addBond(0, 5, [])
    >>> CustomCV("log_r", force, lambda t: np.log(mdtraj.compute_distances(t, [[0, 5]])[:, 0]), minimum=-2, maximum=0)

    Parameters
    ----------
    force : its energy (kJ/mol) is the CV; copied, so it may belong to a system already
    function : trajectory -> array of shape (n_frames,), the same number as the force's energy, or a whole number of
        periods away; give a function of a module rather than a lambda where processes are used
    atoms : which atoms it is made of, if known
    """

    def __init__(
        self,
        name: str,
        force: openmm.Force,
        function: Values,
        period: Any = None,
        unit: Unit = "",
        minimum: Any = None,
        maximum: Any = None,
        *,
        atoms: Iterable[int] = (),
        windows: int | None = None,
        force_constant: Any = None,
    ) -> None:
        super().__init__(
            name,
            atoms,
            unit,
            period=period,
            minimum=minimum,
            maximum=maximum,
            windows=windows,
            force_constant=force_constant,
        )
        if not isinstance(force, openmm.Force):
            raise InputError(f"CV '{name}': the force must be an openmm.Force, got {type(force).__name__}")
        if not callable(function):
            raise InputError(f"CV '{name}': a function that takes an mdtraj.Trajectory is needed")
        self._force = copy.deepcopy(force)
        self._function = function

    def force(self) -> openmm.Force:
        return copy.deepcopy(self._force)

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        # A function may change what it is given: mdtraj.rmsd without atom_indices centres the frames in place.
        own = trajectory.slice(slice(None), copy=False)
        own.xyz = trajectory.xyz.copy()
        return self._function(own)


def from_bias_variable(
    name: str,
    variable: BiasVariable,
    function: Values,
    *,
    unit: Unit = "",
    atoms: Iterable[int] = (),
    windows: int | None = None,
    force_constant: Any = None,
) -> CustomCV:
    """Return the CV of a metadynamics `BiasVariable`; `function` gives its values from an mdtraj trajectory.

    The range becomes the CV's range, or its period if the variable is periodic: values are then reported in
    [−period/2, period/2), also where the variable was given as, say, 0 to 2π. Bias and grid widths are not used.
    """
    low, high = float(variable.minValue), float(variable.maxValue)
    return CustomCV(
        name,
        variable.force,
        function,
        period=high - low if variable.periodic else None,
        unit=unit,
        minimum=None if variable.periodic else low,
        maximum=None if variable.periodic else high,
        atoms=atoms,
        windows=windows,
        force_constant=force_constant,
    )


CV_KINDS: dict[str, type[CollectiveVariable]] = {
    "torsion": Torsion,
    "distance": Distance,
    "position": Position,
    "angle": Angle,
    "radius_of_gyration": RadiusOfGyration,
    "rmsd": RMSD,
    "contact_number": ContactNumber,
    "expression": ExpressionCV,
}
"""The `kind` of a CV in system.toml: the one place where a string becomes a class."""


def as_cvs(cvs: Sequence[CollectiveVariable]) -> tuple[CollectiveVariable, ...]:
    """Return one to three CVs of different names as a tuple, or raise `InputError`."""
    try:
        given = tuple(cvs)
    except TypeError:
        raise InputError(f"cvs must be a list of collective variables, got {type(cvs).__name__}") from None
    for cv in given:
        if isinstance(cv, BiasVariable):
            raise InputError(
                "a BiasVariable has no mdtraj function: wrap it with from_bias_variable(name, variable, function)"
            )
        if not isinstance(cv, CollectiveVariable):
            raise InputError(f"a collective variable such as openmm_sgm.Torsion is needed, got {type(cv).__name__}")
    if not 1 <= len(given) <= MAXIMUM_CVS:
        raise InputError(f"one to {MAXIMUM_CVS} CVs are supported, got {len(given)}")
    names = [cv.name for cv in given]
    if len(set(names)) < len(names):
        raise InputError(f"CVs need different names, got {', '.join(names)}")
    return given


def strip_values(cvs: Sequence[CollectiveVariable], values: Sequence[Any]) -> tuple[float, ...]:
    """Return a value for each CV, numbers or Quantities, as numbers in their units, or raise `InputError`.

    Bare numbers for several torsions that all lie beyond half a turn, as (5, -6) does, are ones in degrees: one of them
    may be written so, from 0 to 2π, but where all are it is no accident.
    """
    numbers = tuple(cv.strip_units(value) for cv, value in zip(cvs, values, strict=True))
    bare = [
        number
        for cv, value, number in zip(cvs, values, numbers, strict=True)
        if cv.unit == "rad" and cv.period is not None and not units.is_quantity(value)
    ]
    if len(bare) > 1 and min(map(abs, bare)) > HALF_TURN:
        listed = " and ".join(f"{number:g}" for number in bare)
        raise InputError(f"the torsions {listed} are all beyond half a turn: {IN_RADIANS}")
    return numbers


def _atom_tuple(name: str, atoms: Iterable[int]) -> tuple[int, ...]:
    """Return distinct, non-negative indices or raise `InputError`."""
    try:
        given = list(atoms)
    except TypeError:
        raise InputError(f"CV '{name}': atoms must be a list of zero-based indices, got {atoms!r}") from None
    result = tuple(_integer(name, "an atom index", atom) for atom in given)
    if any(atom < 0 for atom in result):
        raise InputError(f"CV '{name}': atom indices count from 0 and are never negative, got {list(result)}")
    if len(set(result)) < len(result):
        raise InputError(f"CV '{name}': atoms must be distinct, got {list(result)}")
    return result


def _require_count(cv: CollectiveVariable, count: int, or_more: bool = False) -> None:
    if len(cv.atoms) < count or (len(cv.atoms) > count and not or_more):
        wanted = f"{count} atoms or more" if or_more else f"{count} atoms"
        raise InputError(f"CV '{cv.name}': {type(cv).__name__} needs {wanted}, got {len(cv.atoms)}")


def _integer(name: str, what: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise InputError(f"CV '{name}': {what} must be a whole number, got {value!r}") from None


def _number(name: str, what: str, value: Any, target: units.Unit) -> float | None:
    """Return a number or Quantity in `target`, None unchanged."""
    if value is None:
        return None
    try:
        if np.ndim(value) or isinstance(value, (bool, str)):
            raise TypeError
        number = strip_units(value, target)
    except (TypeError, ValueError):
        raise InputError(f"CV '{name}': {what} must be a number or a Quantity in {target}, got {value!r}") from None
    if not math.isfinite(number):
        raise InputError(f"CV '{name}': {what} must be finite, got {value!r}")
    return number
