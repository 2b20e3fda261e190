"""The window grid: centres and force constants from the CVs, neighbours on tori and at edges, wrapped biases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from openmm_sgm.cvs import CollectiveVariable, Distance, Torsion
from openmm_sgm.units import thermal_energy
from openmm_sgm.windows import WindowGrid

TURN = 2 * math.pi
PHI, PSI = Torsion("phi", (4, 6, 8, 14)), Torsion("psi", (6, 8, 14, 16))


def grid_of(*axes: tuple[int, float | None], temperature_k: float = 300.0) -> WindowGrid:
    """Return a grid from (number of windows, period) of each CV; a CV without a period runs from 0 to 1."""
    centres, periods = [], []
    for count, period in axes:
        low, width = (0.0, 1.0) if period is None else (-period / 2, period)
        centres.append(low + (np.arange(count) + 0.5) * width / count)
        periods.append(period)
    constants = 10.0 * (1 + np.arange(len(axes)))
    return WindowGrid(tuple(centres), constants, tuple(periods), temperature_k)


GRIDS = {
    "circle": grid_of((18, TURN)),
    "line": grid_of((12, None)),
    "torus": grid_of((5, TURN), (7, TURN)),
    "cylinder": grid_of((4, TURN), (3, None)),
    "sheet": grid_of((3, None), (4, None)),
    "three circles": grid_of((3, TURN), (4, 3.0), (5, TURN)),
    "circle in a box": grid_of((3, None), (4, TURN), (3, None)),
    "box": grid_of((3, None), (3, None), (3, None)),
    "circle of two": grid_of((2, TURN), (3, None)),
    "circle of one": grid_of((1, TURN), (4, TURN)),
    "a single window": grid_of((1, None)),
}


# From CVs


def test_over_torsions_by_default() -> None:
    grid = WindowGrid.over([PHI, PSI], 300.0)
    assert grid.shape == (18, 18)
    assert grid.periods == (TURN, TURN)
    assert grid.temperature_k == 300.0
    for axis in grid.axes:
        np.testing.assert_allclose(np.degrees(axis), np.arange(-170, 180, 20), atol=1e-12)
    np.testing.assert_allclose(grid.force_constants, 66, atol=0.5)
    width = np.sqrt(thermal_energy(300.0) / grid.force_constants)
    np.testing.assert_allclose(np.radians(20) / width, 1.8, rtol=1e-12)


def test_over_a_range_by_default() -> None:
    grid = WindowGrid.over([Distance("r", (1, 18), 0.3, 0.9)], 400.0)
    assert grid.shape == (12,)
    assert grid.periods == (None,)
    np.testing.assert_allclose(grid.axes[0], 0.3 + 0.05 * (np.arange(12) + 0.5), rtol=1e-14)
    np.testing.assert_allclose(grid.force_constants, thermal_energy(400.0) * (1.8 / 0.05) ** 2, rtol=1e-12)


def test_over_with_given_windows_and_force_constants() -> None:
    cvs: list[CollectiveVariable] = [
        Torsion("phi", (4, 6, 8, 14), windows=6),
        Distance("r", (1, 18), 0.2, 0.6, force_constant=900.0),
        Distance("s", (1, 16), 0.0, 1.0, windows=4, force_constant=50.0),
    ]
    grid = WindowGrid.over(cvs, 300.0)
    assert grid.shape == (6, 12, 4)
    assert grid.periods == (TURN, None, None)
    np.testing.assert_allclose(np.degrees(grid.axes[0]), [-150, -90, -30, 30, 90, 150], atol=1e-12)
    np.testing.assert_allclose(grid.axes[2], [0.125, 0.375, 0.625, 0.875])
    # the spacing that overlap is made for is that of the windows given
    expected = [thermal_energy(300.0) * (1.8 / np.radians(60)) ** 2, 900.0, 50.0]
    np.testing.assert_allclose(grid.force_constants, expected, rtol=1e-12)


def test_over_one_window() -> None:
    grid = WindowGrid.over([Distance("r", (1, 18), 0.3, 0.9, windows=1)], 300.0)
    np.testing.assert_allclose(grid.centers, [[0.6]])
    assert grid.neighbours(0) == []


def test_label_space_covers_the_range_of_the_cvs() -> None:
    space = WindowGrid.over([PHI, Distance("r", (1, 18), 0.3, 0.9, windows=5)], 300.0).label_space
    assert space.periods == (TURN, None)
    np.testing.assert_allclose(space.minimum, [-math.pi, 0.3], rtol=1e-12)
    np.testing.assert_allclose(space.maximum, [math.pi, 0.9], rtol=1e-12)


# Centres and neighbours


@pytest.mark.parametrize("name", GRIDS)
def test_centres_are_in_the_order_of_flat_indices(name: str) -> None:
    grid = GRIDS[name]
    assert grid.centers.shape == (math.prod(grid.shape), len(grid.shape))
    for window, centre in enumerate(grid.centers):
        place = np.unravel_index(window, grid.shape)
        np.testing.assert_array_equal(centre, [axis[i] for axis, i in zip(grid.axes, place, strict=True)])


@pytest.mark.parametrize("name", GRIDS)
def test_neighbours_are_one_step_away_along_one_cv(name: str) -> None:
    """Against every pair of windows: a step along one CV, the shorter way round where it is periodic."""
    grid = GRIDS[name]
    places = np.stack(np.unravel_index(np.arange(len(grid.centers)), grid.shape), axis=1)
    steps = np.abs(places[:, None] - places[None])
    for k, period in enumerate(grid.periods):
        if period is not None:
            steps[..., k] = np.minimum(steps[..., k], grid.shape[k] - steps[..., k])
    adjacent = steps.sum(axis=-1) == 1
    for window in range(len(places)):
        found = grid.neighbours(window)
        assert sorted(found) == np.flatnonzero(adjacent[window]).tolist()
        assert len(set(found)) == len(found)
        assert all(window in grid.neighbours(other) for other in found), "being neighbours is mutual"


def test_neighbours_on_a_torus_and_at_an_edge() -> None:
    assert sorted(GRIDS["circle"].neighbours(0)) == [1, 17]
    assert sorted(GRIDS["circle"].neighbours(17)) == [0, 16]
    assert GRIDS["line"].neighbours(0) == [1]
    assert sorted(GRIDS["line"].neighbours(5)) == [4, 6]
    assert GRIDS["line"].neighbours(11) == [10]
    # row 0, column 0 of 5 × 7: rows 4 and 1, columns 6 and 1
    assert sorted(GRIDS["torus"].neighbours(0)) == [1, 6, 7, 28]
    counts = {name: [len(grid.neighbours(w)) for w in range(len(grid.centers))] for name, grid in GRIDS.items()}
    assert set(counts["torus"]) == {4}
    assert set(counts["three circles"]) == {6}
    assert [counts["box"].count(n) for n in (3, 4, 5, 6)] == [8, 12, 6, 1], "corners, edges, faces, and the middle"
    assert counts["circle of two"] == [2, 3, 2] * 2
    assert set(counts["circle of one"]) == {2}
    assert counts["a single window"] == [0]


# Differences and biases


def test_difference_wraps_only_what_is_periodic() -> None:
    grid = GRIDS["cylinder"]
    a, b = np.array([[3.0, 0.9], [-3.0, 0.1]]), np.array([-3.0, 0.2])
    np.testing.assert_allclose(grid.difference(a, b), [[6 - TURN, 0.7], [0.0, -0.1]], atol=1e-13)
    np.testing.assert_array_equal(a, [[3.0, 0.9], [-3.0, 0.1]])
    np.testing.assert_allclose(grid.difference(a + np.array([5 * TURN, 0]), b), grid.difference(a, b), atol=1e-12)


def test_difference_broadcasts_and_takes_the_short_way() -> None:
    rng = np.random.default_rng(1)
    grid = GRIDS["three circles"]
    a, b = rng.uniform(-9, 9, size=(20, 1, 3)), rng.uniform(-9, 9, size=(30, 3))
    d = grid.difference(a, b)
    assert d.shape == (20, 30, 3)
    for k, period in enumerate(grid.periods):
        assert period is not None
        assert (np.abs(d[..., k]) <= period / 2 + 1e-12).all()
        turns = (a - b - d)[..., k] / period
        np.testing.assert_allclose(turns, np.round(turns), atol=1e-12)


@pytest.mark.parametrize("name", GRIDS)
def test_reduced_bias_against_the_formula(name: str) -> None:
    grid = GRIDS[name]
    points = np.random.default_rng(2).uniform(-4, 4, size=(25, len(grid.shape)))
    bias = grid.reduced_bias(points[:, None], grid.centers)
    assert bias.shape == (25, len(grid.centers))
    expected = np.zeros_like(bias)
    for n, point in enumerate(points):
        for window, centre in enumerate(grid.centers):
            for k, period in enumerate(grid.periods):
                d = point[k] - centre[k]
                if period is not None:
                    d = min((d + turn * period for turn in range(-5, 6)), key=abs)
                expected[n, window] += 0.5 * grid.force_constants[k] * d**2
    np.testing.assert_allclose(bias, expected / (0.00831446261815324 * 300.0), rtol=1e-9)


def test_reduced_bias_at_the_centre_and_a_width_away() -> None:
    grid = WindowGrid.over([PHI, PSI], 350.0)
    np.testing.assert_allclose(grid.reduced_bias(grid.centers, grid.centers), 0, atol=1e-20)
    width = np.sqrt(thermal_energy(350.0) / grid.force_constants)
    np.testing.assert_allclose(grid.reduced_bias(grid.centers + width, grid.centers), 1.0, rtol=1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_nearest(name: str) -> None:
    grid = GRIDS[name]
    assert [grid.nearest(centre) for centre in grid.centers] == list(range(len(grid.centers)))
    spacing = np.array([axis[1] - axis[0] if len(axis) > 1 else 0.1 for axis in grid.axes])
    turns = np.array([period or 0.0 for period in grid.periods])
    moved = np.random.default_rng(4).uniform(-0.49, 0.49, size=grid.centers.shape) * spacing + grid.centers
    assert [grid.nearest(point) for point in moved] == list(range(len(grid.centers)))
    assert [grid.nearest(point + 2 * turns) for point in moved] == list(range(len(grid.centers)))


def test_nearest_wraps_and_stops_at_an_edge() -> None:
    assert GRIDS["circle"].nearest(np.array([math.pi + 0.01])) == 0
    assert GRIDS["circle"].nearest(np.array([-math.pi - 0.01])) == 17
    assert GRIDS["line"].nearest(np.array([-7.0])) == 0
    assert GRIDS["line"].nearest(np.array([7.0])) == 11
