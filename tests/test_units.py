"""Quantities become plain floats in the units of the package, bare numbers are taken as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
import pytest
from openmm import unit

from openmm_sgm.units import BOLTZMANN_KJ_MOL_K, InputError, strip_units, thermal_energy


@pytest.mark.parametrize(
    ("value", "target", "expected"),
    [
        (300 * unit.kelvin, unit.kelvin, 300.0),
        (3.5 * unit.angstrom, unit.nanometer, 0.35),
        (180 * unit.degree, unit.radian, np.pi),
        (1 * unit.kilocalorie_per_mole, unit.kilojoule_per_mole, 4.184),
        (2 * unit.femtosecond, unit.picosecond, 0.002),
        (1 / unit.picosecond, unit.femtosecond**-1, 0.001),
        (3, unit.kelvin, 3.0),
        (np.float32(0.5), unit.nanometer, 0.5),
        (np.array(7), unit.nanometer, 7.0),
        (np.array(7.0) * unit.angstrom, unit.nanometer, 0.7),
    ],
    ids=str,
)
def test_a_number_becomes_a_float(value: Any, target: unit.Unit, expected: float) -> None:
    result = strip_units(value, target)
    assert type(result) is float
    assert result == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2, 3], [1.0, 2.0, 3.0]),
        ((1.0, 2.5), [1.0, 2.5]),
        (np.arange(4, dtype=np.float32).reshape(2, 2), [[0.0, 1.0], [2.0, 3.0]]),
        ([10, 20] * unit.angstrom, [1.0, 2.0]),
        (np.array([[10.0, 20.0, 30.0]]) * unit.angstrom, [[1.0, 2.0, 3.0]]),
        ([openmm.Vec3(10, 20, 30), openmm.Vec3(0, 0, 5)] * unit.angstrom, [[1.0, 2.0, 3.0], [0.0, 0.0, 0.5]]),
        ([], []),
    ],
    ids=str,
)
def test_arrays_become_float64(value: Any, expected: list) -> None:
    result = strip_units(value, unit.nanometer)
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float64
    assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result, expected, rtol=1e-14)


def test_the_argument_is_left_as_it_was() -> None:
    value = np.array([10.0, 20.0]) * unit.angstrom
    strip_units(value, unit.nanometer)
    assert value.unit == unit.angstrom
    np.testing.assert_array_equal(value.value_in_unit(unit.angstrom), [10.0, 20.0])


@pytest.mark.parametrize("value", [1 * unit.kelvin, [1.0, 2.0] * unit.picosecond], ids=str)
def test_a_quantity_of_another_dimension_is_refused(value: unit.Quantity) -> None:
    with pytest.raises(TypeError, match="not compatible"):
        strip_units(value, unit.nanometer)


def test_thermal_energy() -> None:
    # R = 8.314 462 618 153 24 J/mol/K exactly, since the SI of 2019
    assert pytest.approx(8.31446261815324e-3, rel=1e-8) == BOLTZMANN_KJ_MOL_K
    assert thermal_energy(300.0) == pytest.approx(2.494338785445972, rel=1e-8)
    assert thermal_energy(600.0) == 2 * thermal_energy(300.0)
    assert thermal_energy(0.0) == 0


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)
