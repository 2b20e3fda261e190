"""Quantities at the door, plain floats inside: nm, ps, kJ/mol, radians, kelvin."""

from __future__ import annotations

from typing import Any

import numpy as np
from openmm import unit

__all__ = [
    "BOLTZMANN_KJ_MOL_K",
    "TEMPERATURES_K",
    "HiddenStateWarning",
    "InputError",
    "SamplingError",
    "check_range",
    "one_line",
    "strip_units",
    "thermal_energy",
]

TEMPERATURES_K = (1e-3, 1e6)
"""Between which a temperature must lie."""
BOLTZMANN_KJ_MOL_K = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)


class InputError(ValueError):
    """The user's input cannot be used; the message is one sentence that says what to change."""


class SamplingError(RuntimeError):
    """A run cannot go on, through no fault of the input's form; the message says why in one sentence."""


class HiddenStateWarning(UserWarning):
    """Overlapping windows hold different states: results that rest on them are not to be trusted."""


def one_line(error: BaseException) -> str:
    """Return an exception's message without line breaks and without a full stop, to stand within a sentence."""
    return " ".join(str(error).split()).rstrip(".")


def check_range(what: str, value: float, low: float, high: float) -> None:
    """Refuse a number with which what follows would overflow, or hang: one outside what any system can need.

    Raises
    ------
    InputError
        one sentence that names the bounds.
    """
    if not low <= value <= high:
        raise InputError(f"{what} must be between {low:g} and {high:g}, got {value:g}")


def strip_units(value: Any, target: unit.Unit) -> Any:
    """Return `value` in `target`; a bare number or array is taken to be in that unit already."""
    if unit.is_quantity(value):
        value = value.value_in_unit(target)
    return np.asarray(value, dtype=float) if np.ndim(value) else float(value)


def thermal_energy(temperature_k: float) -> float:
    """Return kT in kJ/mol."""
    return BOLTZMANN_KJ_MOL_K * temperature_k
