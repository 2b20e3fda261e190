"""Effective dynamics against closed forms: what bursts give, and what follows from drift and diffusion.

Every test was seen to fail on a broken version, named in its docstring. kT is 1 unless a test says otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import mdtraj
import numpy as np
import openmm
import pytest
from analytic import triatomic, triatomic_simulation
from conftest import REPOSITORY
from openmm import app, unit
from scipy.linalg import expm
from scipy.stats import binom, chi2, norm

from openmm_sgm import bursts as bursts_module
from openmm_sgm.bursts import Bursts, run_bursts
from openmm_sgm.cells import CellGrid
from openmm_sgm.cvs import CollectiveVariable, CustomCV
from openmm_sgm.effective import EffectiveDynamics
from openmm_sgm.executors import make_executor
from openmm_sgm.free_energy import Surface
from openmm_sgm.kramers_moyal import estimate_drift_and_diffusion
from openmm_sgm.propagator import fit_diffusion_on_surface
from openmm_sgm.reduced import ReducedEquation
from openmm_sgm.system_file import load_system
from openmm_sgm.units import InputError, thermal_energy
from openmm_sgm.velocities import make_integrator

Field = Callable[[np.ndarray], np.ndarray]


def line(low: float, high: float, cells: int, periodic: bool = False) -> CellGrid:
    return CellGrid((np.linspace(low, high, cells + 1),), (periodic,))


def circle(cells: int) -> CellGrid:
    return line(-np.pi, np.pi, cells, periodic=True)


def equation(grid: CellGrid, drift: Field, diffusion: Field) -> ReducedEquation:
    """Return the equation of one CV whose drift and diffusion are functions."""
    x = grid.centers[:, 0]
    return ReducedEquation(grid, drift(x)[:, None], diffusion(x)[:, None, None])


def cells_between(grid: CellGrid, low: float, high: float) -> np.ndarray:
    """Return the mask of the cells of one CV whose centres lie between two values."""
    return (grid.centers[:, 0] > low) & (grid.centers[:, 0] < high)


def uniform_starts(grid: CellGrid, per_cell: int, rng: np.random.Generator) -> np.ndarray:
    jitter = (rng.random((grid.n_cells, per_cell, len(grid.shape))) - 0.5) * grid.spacing
    return (grid.centers[:, None] + jitter).reshape(-1, len(grid.shape))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(np.asarray(values) ** 2)))


def cumulative(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return ∫ values dx from x[0] by the trapezoidal rule."""
    return np.concatenate([[0.0], np.cumsum(0.5 * (values[1:] + values[:-1]) * np.diff(x))])


def exit_time(x: float, left: float, right: float, u: Field, d: Field) -> float:
    """Return the mean time to leave (left, right) from x in the potential u: quadrature of the backward equation."""
    y = np.linspace(left, right, 20_001)
    scale = cumulative(np.exp(u(y)) / d(y), y)
    inner = cumulative(np.exp(u(y)) / d(y) * cumulative(np.exp(-u(y)), y), y)
    return float(np.interp(x, y, scale / scale[-1] * inner[-1] - inner))


def climb_time(a: float, b: float, low: float, u: Field, d: Field) -> float:
    """Return the mean time from a to b above it: ∫_a^b dy e^u/D ∫_low^y dz e^−u, with a wall at `low`."""
    y = np.linspace(low, b, 40_001)
    outer = cumulative(np.exp(u(y)) / d(y) * cumulative(np.exp(-u(y)), y), y)
    return float(outer[-1] - np.interp(a, y, outer))


# Estimates from bursts


RATE, DIFFUSION = 1.0, 0.5


def ornstein_uhlenbeck(starts: np.ndarray, times: int, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Return exact paths, shape (n, times, 1)."""
    path, decay = [starts], np.exp(-RATE * spacing)
    spread = np.sqrt(DIFFUSION / RATE * (1 - decay**2))
    for _ in range(times - 1):
        path.append(path[-1] * decay + spread * rng.standard_normal(starts.shape))
    return np.stack(path, axis=1)


@pytest.fixture(scope="module")
def ornstein() -> EffectiveDynamics:
    rng = np.random.default_rng(1)
    grid = line(-2.0, 2.0, 16)
    paths = ornstein_uhlenbeck(uniform_starts(grid, 3000, rng), 9, 0.01, rng)
    return estimate_drift_and_diffusion(paths, 0.01 * unit.picosecond, grid, seed=2, estimator="direct", lag=0.04)


def test_drift_and_diffusion_of_an_ornstein_uhlenbeck_process(ornstein: EffectiveDynamics) -> None:
    """Against the exact moments at the lag: fails with D off by 2 and with the drift's sign turned."""
    tau, x = ornstein.lag, ornstein.grid.centers[:, 0]
    drift = -x * (1 - np.exp(-RATE * tau)) / tau
    diffusion = DIFFUSION * (1 - np.exp(-2 * RATE * tau)) / (2 * RATE * tau)
    z = (ornstein.drift[:, 0] - drift) / ornstein.drift_error[:, 0]
    assert 0.6 < rms(z) < 1.4  # χ² of 16 cells: 1 ± 0.18
    z = (ornstein.diffusion[:, 0, 0] - diffusion) / ornstein.diffusion_error[:, 0, 0]
    assert 0.6 < rms(z) < 1.4
    np.testing.assert_allclose(ornstein.diffusion_error[:, 0, 0], diffusion * np.sqrt(2 / 3000), rtol=0.3)
    assert ornstein.has_plateau
    assert (ornstein.counts == 3000).all()


def test_the_correction_for_the_lag() -> None:
    """At half the relaxation time drift and diffusion are 21 % and 37 % too small (between half of it and all of it
    more), and mended by the moments of the chain; fails with moments of the chain at another lag, and with its second
    moments for its covariances."""
    rng = np.random.default_rng(17)
    grid = line(-3.0, 3.0, 30)
    paths = ornstein_uhlenbeck(uniform_starts(grid, 2000, rng), 3, 0.25, rng)
    x, inner = grid.centers[:, 0], np.abs(grid.centers[:, 0]) < 1
    for estimator in ("direct", "slope"):
        with pytest.warns(UserWarning, match="nothing to compare"):
            raw = estimate_drift_and_diffusion(paths, 0.25, grid, seed=18, estimator=estimator, lag=0.5, n_bootstrap=20)
        found = raw.corrected()
        assert rms((raw.drift[:, 0] + x)[inner]) > 0.1
        assert np.mean(raw.diffusion[inner]) < 0.65 * DIFFUSION
        assert rms(((found.drift[:, 0] + x) / found.drift_error[:, 0])[inner]) < 2
        assert np.mean(found.diffusion[inner]) == pytest.approx(DIFFUSION, rel=0.07)


def test_density_and_passage_time_of_an_ornstein_uhlenbeck_process(ornstein: EffectiveDynamics) -> None:
    """Errors go through the whole chain: fails with the drift's sign turned and with D off by 2."""
    grid, x = ornstein.grid, ornstein.grid.centers[:, 0]
    surface = ornstein.surface(1 / thermal_energy(1.0))  # kT = 1
    low = surface.free_energy < 4
    exact = x**2 / (2 * DIFFUSION / RATE)
    difference = surface.free_energy - exact
    difference -= difference[low].mean()
    assert rms(difference[low] / surface.std_error[low]) < 2  # neighbours share their errors: few degrees of freedom
    assert rms(difference[low]) < 0.1
    density, error = ornstein.stationary_density()
    assert (density * 0.25).sum() == pytest.approx(1)
    assert (error > 0).all()
    start, target = cells_between(grid, -0.25, 0.0), cells_between(grid, 1.0, 2.0)
    time, error = ornstein.mean_first_passage_time(start, target)
    u: Field = lambda y: y**2 / (2 * DIFFUSION / RATE)  # noqa: E731
    truth = climb_time(-0.125, 1.0, -2.0, u, lambda y: np.full_like(y, DIFFUSION))
    assert error < 0.1 * truth
    assert abs(time - truth) < 3 * error + 0.02 * truth  # at this lag the well looks 2 % too soft


def test_bursts_cross_the_end_of_a_periodic_cv() -> None:
    """Fails when differences are not wrapped. Cosine potential, D that depends on the angle."""
    rng = np.random.default_rng(3)
    grid = circle(24)
    u: Field = lambda y: 1.5 * np.cos(2 * y)  # noqa: E731
    d: Field = lambda y: 0.5 + 0.2 * np.sin(y)  # noqa: E731
    b: Field = lambda y: d(y) * 3.0 * np.sin(2 * y) + 0.2 * np.cos(y)  # noqa: E731
    x = uniform_starts(grid, 4000, rng)
    path, step = [x], 0.0005
    for _ in range(4):
        for _ in range(10):
            x = x + b(x) * step + np.sqrt(2 * d(x) * step) * rng.standard_normal(x.shape)
        path.append(x)
    paths = grid.wrap(np.stack(path, axis=1))
    found = estimate_drift_and_diffusion(paths, 10 * step, grid, seed=4, estimator="direct", lag=0.01)
    centers = grid.centers[:, 0]
    assert rms((found.drift[:, 0] - b(centers)) / found.drift_error[:, 0]) < 1.4
    assert rms((found.diffusion[:, 0, 0] - d(centers)) / found.diffusion_error[:, 0, 0]) < 1.6
    surface = found.surface(1 / thermal_energy(1.0))
    difference = surface.free_energy - u(centers)
    assert rms((difference - difference.mean()) / surface.std_error) < 2
    assert rms(surface.std_error) < 0.2
    target = cells_between(grid, -np.pi / 2 - 0.3, -np.pi / 2 + 0.3)
    edge = np.pi / 12
    time, error = found.mean_first_passage_time(cells_between(grid, np.pi / 2, np.pi / 2 + 0.2), target)
    truth = exit_time(np.pi / 2 + edge / 2, -np.pi / 2 + edge, 3 * np.pi / 2 - edge, u, d)
    assert abs(time - truth) < 3 * error
    assert error < 0.15 * truth


# From drift and diffusion


def wavy(y: np.ndarray) -> np.ndarray:
    return 1.0 + 0.6 * np.sin(y)


def double_well(y: np.ndarray) -> np.ndarray:
    return 4.0 * (y**2 - 1) ** 2


def in_double_well(cells: int, d: Field, slope: Field) -> ReducedEquation:
    """Return the equation in the double well with D(ξ) and its derivative given: b = −D u′ + D′."""
    return equation(line(-1.8, 1.8, cells), lambda y: -d(y) * 16 * y * (y**2 - 1) + slope(y), d)


def test_stationary_density_with_a_diffusion_that_varies() -> None:
    """Against exp(−u) and the quadrature p ∝ (1/D) exp(∫ b/D): fails with the flux bp − D∇p, without the Itô term."""
    reduced = in_double_well(91, wavy, lambda y: 0.6 * np.cos(y))
    x = reduced.grid.centers[:, 0]
    density = reduced.stationary_density()
    exact = np.exp(-double_well(x))
    np.testing.assert_allclose(density, exact / (exact.sum() * 3.6 / 91), rtol=0.03)
    quadrature = np.exp(cumulative(reduced.drift[:, 0] / wavy(x), x)) / wavy(x)
    np.testing.assert_allclose(density, quadrature / (quadrature.sum() * 3.6 / 91), rtol=1e-6)


def test_passage_times_against_quadrature() -> None:
    """Fails without the Itô term, with D off by 2, and with a target reached at a cell's centre."""
    reduced = in_double_well(90, wavy, lambda y: 0.6 * np.cos(y))
    times = reduced.mean_first_passage_times(cells_between(reduced.grid, 0.8, 2.0))
    for cell in (5, 20, 40, 60, 64):
        truth = climb_time(reduced.grid.centers[cell, 0], 0.8, -1.8, double_well, wavy)
        assert times[cell] == pytest.approx(truth, rel=0.02)


def test_passage_times_on_a_circle_lead_both_ways_round() -> None:
    """Fails when the last cell does not know the first as its neighbour."""
    u: Field = lambda y: np.cos(3 * y) + 0.5 * np.sin(y)  # noqa: E731
    reduced = equation(circle(120), lambda y: wavy(y) * (3 * np.sin(3 * y) - 0.5 * np.cos(y)) + 0.6 * np.cos(y), wavy)
    edge = 2 * np.pi / 120 * 3
    times = reduced.mean_first_passage_times(cells_between(reduced.grid, -edge, edge))
    for cell in (0, 10, 50, 70, 119):
        x = reduced.grid.centers[cell, 0] % (2 * np.pi)
        assert times[cell] == pytest.approx(exit_time(x, edge, 2 * np.pi - edge, u, wavy), rel=0.005)


def test_committor_of_a_double_well() -> None:
    """One half at the barrier by symmetry, and the quadrature ∫ e^u/D everywhere: fails without the Itô term where D
    varies."""
    for d, slope in ((np.ones_like, np.zeros_like), (wavy, lambda y: 0.6 * np.cos(y))):
        reduced = in_double_well(45, d, slope)  # 45 cells: one has its centre on the barrier
        grid = reduced.grid
        a, b = cells_between(grid, -1.8, -1.0), cells_between(grid, 1.0, 1.8)
        q = reduced.committor(a, b)
        y = np.linspace(-1.0, 1.0, 20_001)
        scale = cumulative(np.exp(double_well(y)) / d(y), y)
        inside = ~a & ~b
        np.testing.assert_allclose(q[inside], np.interp(grid.centers[inside, 0], y, scale / scale[-1]), atol=0.01)
        assert (q[a] == 0).all()
        assert (q[b] == 1).all()
        if d is np.ones_like:
            assert q[22] == pytest.approx(0.5, abs=1e-10)


def test_the_chain_in_two_dimensions_is_the_generator() -> None:
    """Its rates times a smooth f tend to b·∇f + D:∇∇f with the square of the spacing, the off-diagonal part included:
    fails when that part is left out or has the other sign."""
    errors = []
    for cells in (20, 40, 80):
        edges = np.linspace(-np.pi, np.pi, cells + 1)
        grid = CellGrid((edges, edges), (True, True))
        x, y = grid.centers.T
        b = np.stack([np.sin(x) - np.cos(y), np.cos(x + y)], axis=1)
        xx, yy, xy = 1 + 0.3 * np.sin(x), 0.8 + 0.2 * np.cos(y), 0.4 * np.sin(x - y)
        reduced = ReducedEquation(grid, b, np.moveaxis(np.array([[xx, xy], [xy, yy]]), 2, 0))
        f = np.sin(x + 2 * y)
        cos = np.cos(x + 2 * y)
        exact = (b[:, 0] + 2 * b[:, 1]) * cos - (xx + 4 * yy + 4 * xy) * f
        errors.append(rms(reduced.rates() @ f - exact) / rms(exact))
    assert errors[2] < 0.01
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


MULLER_BROWN = (
    (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
    (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
    (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
    (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
)
MULLER_BROWN_SCALE = 0.05
"""kT per unit of the potential: barriers of 5.3 and 1.8 kT on the way from the deepest minimum."""
FROM_BOX, TO_BOX = ((-0.8, -0.4), (1.3, 1.6)), ((0.4, 0.8), (-0.1, 0.2))


def muller_brown(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the potential in kT, shape (n,), and its gradient, (n, 2) (Müller & Brown 1979)."""
    u, gradient = np.zeros(len(points)), np.zeros_like(points)
    for amplitude, a, b, c, x0, y0 in MULLER_BROWN:
        x, y = points[:, 0] - x0, points[:, 1] - y0
        term = MULLER_BROWN_SCALE * amplitude * np.exp(a * x * x + b * x * y + c * y * y)
        u += term
        gradient += term[:, None] * np.stack([2 * a * x + b * y, b * x + 2 * c * y], axis=1)
    return u, gradient


def muller_brown_grid(per_tenth: float) -> tuple[CellGrid, np.ndarray]:
    """Return the grid with so many cells to 0.1, and which of them lie below 12 kT above the minimum."""
    grid = CellGrid(
        (np.linspace(-1.8, 1.4, round(32 * per_tenth) + 1), np.linspace(-0.7, 2.3, round(30 * per_tenth) + 1)),
        (False, False),
    )
    u = muller_brown(grid.centers)[0]
    return grid, u - u.min() < 12


def box(grid: CellGrid, sides: tuple[tuple[float, float], tuple[float, float]]) -> np.ndarray:
    low, high = np.array(sides).T
    return ((grid.centers > low) & (grid.centers < high)).all(axis=1)


def muller_brown_equation(per_tenth: float) -> ReducedEquation:
    grid, low = muller_brown_grid(per_tenth)
    drift = np.where(low[:, None], -muller_brown(grid.centers)[1], np.nan)
    return ReducedEquation(grid, drift, np.broadcast_to(np.eye(2), (grid.n_cells, 2, 2)))


def test_passage_time_in_two_dimensions() -> None:
    """Müller–Brown, D = 1: a coarse grid against a fine one, and the fine one against direct simulation.

    Direct, once: 26.6 ± 1.2 (500 paths, time step 4e-4, starts drawn from exp(−u) in the box). Fails with D off by 2.
    """
    times = {}
    for per_tenth in (1, 4):
        reduced = muller_brown_equation(per_tenth)
        times[per_tenth] = reduced.mean_first_passage_time(box(reduced.grid, FROM_BOX), box(reduced.grid, TO_BOX))
        density = reduced.stationary_density()
        difference = (-np.log(density) - muller_brown(reduced.grid.centers)[0])[reduced.known]
        assert difference.std() < 0.05
    assert times[1] == pytest.approx(times[4], rel=0.1)
    assert times[4] == pytest.approx(26.5, rel=0.03)


def test_muller_brown_from_bursts() -> None:
    """Passage time from bursts alone, within their error, and from their diffusion with the surface, within 10 %:
    the first fails with a drift of the wrong sign, the second with D off by 2."""
    rng = np.random.default_rng(5)
    grid, low = muller_brown_grid(1)
    starts = uniform_starts(grid, 200, rng).reshape(grid.n_cells, 200, 2)[low].reshape(-1, 2)
    x, path, step = starts, [starts], 2e-4
    for _ in range(2):
        for _ in range(10):
            x = x - muller_brown(x)[1] * step + np.sqrt(2 * step) * rng.standard_normal(x.shape)
        path.append(x)
    with pytest.warns(UserWarning, match="nothing to compare"):
        found = estimate_drift_and_diffusion(
            np.stack(path, axis=1), 10 * step, grid, seed=6, estimator="direct", lag=0.004, n_bootstrap=30
        )
    assert (np.isfinite(found.drift[:, 0]) == low).all()
    assert abs(np.mean(found.diffusion[low], axis=0) - np.eye(2)).max() < 0.05
    truth = 26.5
    time, error = found.mean_first_passage_time(box(grid, FROM_BOX), box(grid, TO_BOX))
    assert abs(time - truth) < 3 * error
    assert error < 0.35 * truth
    u = muller_brown(grid.centers)[0]
    surface = Surface((u - u.min()).reshape(grid.shape), np.zeros(grid.shape), grid.edges, grid.names, grid.units)
    time, error = found.on_surface(surface, 1 / thermal_energy(1.0)).mean_first_passage_time(
        box(grid, FROM_BOX), box(grid, TO_BOX)
    )
    assert time == pytest.approx(truth, rel=0.1)
    assert 0 < error < 0.05 * truth


def test_motion_on_a_surface() -> None:
    """Detailed balance with the density given, in two dimensions with a tensor that varies, and with cells made of
    smaller bins; fails when the density is taken for that of one jump direction's D p."""
    edges = np.linspace(-np.pi, np.pi, 13)
    grid = CellGrid((edges, edges), (True, True))
    x, y = grid.centers.T
    log_density = np.cos(x) + np.sin(x - y)
    diffusion = np.moveaxis(
        np.array([[1 + 0.3 * np.sin(x), 0.3 * np.cos(y)], [0.3 * np.cos(y), np.ones_like(x)]]), 2, 0
    )
    reduced = ReducedEquation.on_surface(grid, log_density, diffusion)
    density = reduced.stationary_density()
    np.testing.assert_allclose(np.log(density / density[0]), log_density - log_density[0], atol=1e-9)
    flux = reduced.rates().toarray() * density[:, None]
    np.testing.assert_allclose(flux, flux.T, atol=1e-12)
    log_density[40] = np.nan
    assert not ReducedEquation(grid, 0 * reduced.drift, diffusion, log_density).known[40]
    exact = diffusion @ np.stack([-np.sin(x) + np.cos(x - y), -np.cos(x - y)], axis=1)[..., None]
    exact = exact[..., 0] + np.stack([0.3 * np.cos(x) - 0.3 * np.sin(y), np.zeros_like(x)], axis=1)
    assert rms(reduced.drift - exact) < 0.1 * rms(exact)


def test_paths_of_the_reduced_equation() -> None:
    """Their law is the stationary density: fails without the noise's factor 2."""
    u: Field = lambda y: np.cos(y)  # noqa: E731
    reduced = equation(circle(60), lambda y: wavy(y) * np.sin(y) + 0.6 * np.cos(y), wavy)
    rng = np.random.default_rng(7)
    starts = rng.uniform(-np.pi, np.pi, (2000, 1))
    paths = reduced.simulate(starts, time_step=0.005, steps=2000, interval=200, seed=8)
    assert paths.shape == (2000, 11, 1)
    assert (np.abs(paths) <= np.pi).all()
    y = np.linspace(-np.pi, np.pi, 10_001)
    weight = np.exp(-u(y)) / np.exp(-u(y)).sum()
    for function in (np.cos, np.sin, lambda v: np.cos(2 * v)):
        values = function(paths[:, 2:, 0]).mean(axis=1)
        assert abs(values.mean() - weight @ function(y)) < 4 * values.std() / np.sqrt(len(values)) + 0.005


def test_fields_are_interpolated_across_the_end_of_a_circle() -> None:
    """Without noise a path moves by the drift halfway between the last cell and the first: fails when the circle is
    not closed."""
    grid = circle(12)
    drift = np.linspace(1.0, 2.0, 12)[:, None]
    reduced = ReducedEquation(grid, drift, np.full((12, 1, 1), 1e-20))
    path = reduced.simulate([[np.pi - 1e-9]], time_step=0.01, steps=1, interval=1, seed=1)[0, :, 0]
    assert grid.difference(path[1:, None], path[:1, None])[0, 0] == pytest.approx(0.01 * 1.5, rel=1e-4)


def test_diffusion_from_the_likelihood_at_a_long_lag() -> None:
    """Two CVs on a torus, a tensor with correlation, lags up to three times the relaxation in the wells, where
    displacements tell nothing: fails with the lag taken as double."""
    edges = np.linspace(-np.pi, np.pi, 19)
    grid = CellGrid((edges, edges), (True, True))
    tensor = np.array([[0.4, 0.15], [0.15, 0.25]])
    rng = np.random.default_rng(19)
    x = rng.uniform(-np.pi, np.pi, (3000, 2))
    path, step, root = [x], 0.02, np.linalg.cholesky(tensor)
    for _ in range(4):
        for _ in range(100):
            force = np.stack([2 * np.sin(2 * x[:, 0]), np.sin(x[:, 1])], axis=1)
            x = x + step * force @ tensor + np.sqrt(2 * step) * rng.standard_normal(x.shape) @ root.T
        path.append(x)
    bins = np.linspace(-np.pi, np.pi, 37)
    fine = CellGrid((bins, bins), (True, True)).centers
    height = (np.cos(2 * fine[:, 0]) + np.cos(fine[:, 1])).reshape(36, 36)
    surface = Surface(height, np.zeros((36, 36)), (bins, bins), grid.names, grid.units)
    found = fit_diffusion_on_surface(
        grid.wrap(np.stack(path, axis=1)), 2.0, grid, surface, 1 / thermal_energy(1.0), seed=20, lags=[2.0, 4.0]
    )
    assert found.has_plateau
    z = (found.diffusion - tensor)[0] / found.diffusion_error[0]
    assert rms(z) < 3  # cells of 20° make it too large by some per cent
    np.testing.assert_allclose(found.diffusion[0], tensor, rtol=0.07)
    assert (found.diffusion_error[0] < 0.01).all()
    cells = -np.log(np.exp(-height).reshape(18, 2, 18, 2).sum(axis=(1, 3)))
    np.testing.assert_allclose(found.surface(1 / thermal_energy(1.0)).free_energy, cells - cells.min(), atol=1e-9)


# Bursts of OpenMM


def pair_topology() -> app.Topology:
    topology = app.Topology()
    residue = topology.addResidue("PAI", topology.addChain())
    for name in "AB":
        topology.addAtom(name, app.element.carbon, residue)
    return topology


def first_x(trajectory: mdtraj.Trajectory) -> np.ndarray:
    return np.asarray(trajectory.xyz[:, 0, 0])


def x_of_first_particle(low: float, high: float) -> CollectiveVariable:
    force = openmm.CustomExternalForce("x")
    force.addParticle(0, [])
    return CustomCV("x", force, first_x, unit="nm", minimum=low, maximum=high)


def simulation_of(system: openmm.System, integrator: openmm.Integrator) -> app.Simulation:
    platform = openmm.Platform.getPlatformByName("Reference")
    return app.Simulation(pair_topology(), system, integrator, platform)


TEMPERATURE_K = 300.0
KT = thermal_energy(TEMPERATURE_K)
MASS, FRICTION, EPSILON = 10.0, 10.0, 0.01
WELL_NM, BARRIER, COUPLING = 0.3, 2 * KT, 1000.0


def test_averaged_equation_of_a_fast_and_a_slow_particle() -> None:
    """U = V(x) + κ/2 (y − g(x))², y a hundred times as fast as x: the averaged equation has drift −V′/mγ and
    D = kT/mγ, since the mean force of y on x is zero. At ε = 0.01 the diffusion is smaller by ε g′² ≤ 1 %.

    Fails with D off by 2 and with the drift's sign turned.
    """
    system = openmm.System()
    system.addParticle(MASS)
    system.addParticle(EPSILON * MASS)
    coupling = openmm.CustomCompoundBondForce(
        2, f"{BARRIER}*((x1/{WELL_NM})^2-1)^2+{COUPLING / 2}*(x2-{WELL_NM}*sin(x1/{WELL_NM}))^2"
    )
    coupling.addBond([0, 1], [])
    system.addForce(coupling)
    for particle, energy in ((0, "500*(y^2+z^2)"), (1, "500*(x-x+y^2+z^2)")):
        wall = openmm.CustomExternalForce(energy)
        wall.addParticle(particle, [])
        system.addForce(wall)
    step = 1e-4  # κ/(ε m γ) = 1000/ps: y moves by a tenth of its relaxation time
    simulation = simulation_of(system, openmm.BrownianIntegrator(TEMPERATURE_K, FRICTION, step))
    rng = np.random.default_rng(9)
    cv = x_of_first_particle(-0.45, 0.45)
    grid = CellGrid.of_cvs([cv], 10)
    x = uniform_starts(grid, 1200, rng)[:, 0]
    starts = rng.normal(scale=np.sqrt(KT / 1000), size=(len(x), 2, 3))
    starts[:, 0, 0] = x
    starts[:, 1, 0] = WELL_NM * np.sin(x / WELL_NM) + rng.normal(scale=np.sqrt(KT / COUPLING), size=len(x))
    bursts = run_bursts(simulation, starts, [cv], steps=160, interval=40, seed=10)
    assert bursts.force_evaluations == 160 * len(x)
    assert not bursts.failures
    with pytest.warns(UserWarning, match="nothing to compare"):  # the longest lag was asked for
        found = estimate_drift_and_diffusion(
            bursts.values, bursts.time_spacing, grid, seed=11, estimator="direct", lag=160 * step
        )
    centers = grid.centers[:, 0]
    drift = -4 * BARRIER / WELL_NM * ((centers / WELL_NM) ** 3 - centers / WELL_NM) / (MASS * FRICTION)
    diffusion = KT / (MASS * FRICTION)
    off = np.abs(found.drift[:, 0] - drift)
    assert (off < np.fmax(0.05 * np.abs(drift), 3 * found.drift_error[:, 0])).all()
    assert rms(off / found.drift_error[:, 0]) < 1.5
    off = np.abs(found.diffusion[:, 0, 0] - diffusion)
    assert (off < np.fmax(0.05 * diffusion, 3 * found.diffusion_error[:, 0, 0])).all()
    assert found.diffusion[:, 0, 0].mean() == pytest.approx(diffusion, rel=0.04)


SLOW_STEPS, SLOW_STEP_PS = 150, 2e-4
"""y of `bent_double_well` relaxes at 60/ps: 0.012 of it a step, twice its time over a burst."""


def moments_of_the_averaged_equation(grid: CellGrid, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of Δ(time) from uniform starts in each cell of the averaged `bent_double_well`.

    V = 12 ((x/0.5)² − 1)² and D = kT/mγ / (1 + ε g′²), g′ = 2.4 x: to first order in ε, y = g(x) drags with its own
    friction. By the matrix exponential of the generator on a grid of 0.005 nm, apart from the package.
    """
    h = 0.005
    x = np.arange(-1.15, 1.15, h) + h / 2
    v, d = 12 * ((x / 0.5) ** 2 - 1) ** 2 / KT, averaged_diffusion(0.5 * (x[1:] + x[:-1]))
    up, down = d / h**2 * np.exp(-np.diff(v) / 2), d / h**2 * np.exp(np.diff(v) / 2)
    rates = np.diag(up, 1) + np.diag(down, -1)
    rates -= np.diag(rates.sum(axis=1))
    step = x[None] - x[:, None]
    after = expm(rates * time)
    mean, second = (after * step).sum(axis=1), (after * step**2).sum(axis=1)
    inside = grid.cells_of(x[:, None])
    means = np.array([mean[inside == k].mean() for k in range(grid.n_cells)])
    return means, np.array([second[inside == k].mean() for k in range(grid.n_cells)]) - means**2


def averaged_diffusion(x: np.ndarray) -> np.ndarray:
    return KT / (MASS * FRICTION) / (1 + EPSILON * (2.4 * x) ** 2)


def assert_equal_jointly(found: np.ndarray, error: np.ndarray, exact: np.ndarray) -> None:
    """χ² p > 0.01, and no more cells than chance allows (99 %) are off by both 5 % and two standard errors.

    Of n cells 4.6 % lie beyond two standard errors by chance: that none of many does would refuse what is right.
    """
    z = (found - exact) / error
    assert chi2.sf((z**2).sum(), len(z)) > 0.01
    beyond = np.abs(found - exact) > np.fmax(0.05 * np.abs(exact), 2 * error)
    assert beyond.sum() <= binom.ppf(0.99, len(z), 2 * norm.sf(2))


def test_averaged_equation_of_the_bent_double_well() -> None:
    """The system of `systems/` at ε = 0.01 under Brownian dynamics: drift and diffusion at the lag, cell by cell.

    The outermost cells relax at up to 9/ps: over the lag their D is 20 % below the limit of short lags, which is no
    error of the estimate, and refused here if it is taken for the closed form; by ε g′² D is up to 2.5 % below that
    at ε = 0. Fails with D off by 1.2, with the drift's sign turned, and with the limit of short lags for the moments.
    """
    molecule = load_system(REPOSITORY / "systems" / "bent_double_well")
    integrator = make_integrator("brownian", TEMPERATURE_K, FRICTION, SLOW_STEP_PS)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, molecule.system, integrator, platform)
    rng = np.random.default_rng(19)
    grid = CellGrid((np.linspace(-0.7, 0.7, 15),), (False,))
    x = uniform_starts(grid, 1500, rng)[:, 0]
    starts = rng.normal(scale=np.sqrt(KT / 25), size=(len(x), 2, 3))
    starts[:, 0, 0] = x
    starts[:, 1, 1] = 1.2 * x**2 + rng.normal(scale=np.sqrt(KT / 60), size=len(x))
    bursts = run_bursts(simulation, starts, molecule.cvs, steps=SLOW_STEPS, interval=SLOW_STEPS // 2, seed=20)
    lag = SLOW_STEPS * SLOW_STEP_PS
    with pytest.warns(UserWarning, match="nothing to compare"):
        seen = estimate_drift_and_diffusion(bursts.values, bursts.time_spacing, grid, seed=21, lag=lag)
    (first, first_variance), (last, variance) = (moments_of_the_averaged_equation(grid, t) for t in (lag / 2, lag))
    assert_equal_jointly(seen.drift[:, 0], seen.drift_error[:, 0], (last - first) / (lag / 2))
    diffusion = (variance - first_variance) / lag
    assert_equal_jointly(seen.diffusion[:, 0, 0], seen.diffusion_error[:, 0, 0], diffusion)
    limit = averaged_diffusion(grid.centers[:, 0])
    for wrong in (limit, 1.2 * diffusion):
        with pytest.raises(AssertionError):
            assert_equal_jointly(seen.diffusion[:, 0, 0], seen.diffusion_error[:, 0, 0], wrong)
    with pytest.raises(AssertionError):
        assert_equal_jointly(seen.drift[:, 0], seen.drift_error[:, 0], -(last - first) / (lag / 2))


@pytest.fixture(scope="module")
def free_langevin() -> tuple[Bursts, CellGrid]:
    """Bursts of a free particle at γ = 5/ps, an interval of 0.16 ps, up to 2.56 ps: D = kT/mγ = 0.05 nm²/ps."""
    system = openmm.System()
    for _ in range(2):
        system.addParticle(MASS)
    simulation = simulation_of(system, openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 5.0, 0.02))
    cv = x_of_first_particle(-1.0, 1.0)
    grid = CellGrid.of_cvs([cv], 4)
    starts = np.zeros((4000, 2, 3))
    starts[:, :, 0] = uniform_starts(grid, 1000, np.random.default_rng(12))
    return run_bursts(simulation, starts, [cv], steps=128, interval=8, seed=13), grid


def test_the_plateau_lies_above_the_time_of_the_velocity(free_langevin: tuple[Bursts, CellGrid]) -> None:
    """Ballistic at first, MSD = 2D[τ − (1 − e^{−γτ})/γ]: fails with zero velocities at the start (MSD ∝ τ³), or
    with an agreement that ignores the diffusion."""
    bursts, grid = free_langevin
    exact, gamma = KT / (MASS * 5.0), 5.0
    assert bursts.force_evaluations == 4000 * 129
    found = estimate_drift_and_diffusion(bursts.values, bursts.time_spacing, grid, seed=14)
    assert found.has_plateau
    assert found.lag * gamma > 2
    z = (found.diffusion[:, 0, 0] - exact) / found.diffusion_error[:, 0, 0]
    assert rms(z) < 2
    assert rms(found.drift[:, 0] / found.drift_error[:, 0]) < 2
    with pytest.warns(UserWarning, match="no plateau"):  # `direct` has the slip to order 1/γτ
        direct = estimate_drift_and_diffusion(bursts.values, bursts.time_spacing, grid, seed=14, estimator="direct")
    for tau, estimate in zip(direct.lags, direct.diffusions[:, :, 0, 0].mean(axis=1), strict=True):
        assert estimate == pytest.approx(exact * (1 - (1 - np.exp(-gamma * tau)) / (gamma * tau)), rel=0.12)


def test_bursts_too_short_for_a_plateau_are_told_of(free_langevin: tuple[Bursts, CellGrid]) -> None:
    """Fails when the lag is taken without a look at the next."""
    bursts, grid = free_langevin
    with pytest.warns(UserWarning, match="no plateau"):
        found = estimate_drift_and_diffusion(bursts.values[:, :5], bursts.time_spacing, grid, seed=14)
    assert not found.has_plateau
    with pytest.warns(UserWarning, match="nothing to compare"):
        estimate_drift_and_diffusion(bursts.values[:, :3], bursts.time_spacing, grid, seed=14)


def test_bursts_leave_the_simulation_alone_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when units share a seed."""
    monkeypatch.setattr(bursts_module, "BURSTS_PER_UNIT", 3)
    simulation = triatomic_simulation()
    simulation.context.setVelocitiesToTemperature(300.0, 1)
    before = simulation.context.getState(positions=True, velocities=True, parameters=True)
    (cv,) = triatomic().cvs
    starts = np.repeat(triatomic().positions[None], 4, axis=0)
    first = run_bursts(simulation, starts * unit.nanometer, [cv], steps=20, interval=10, seed=1, copies=2)
    after = simulation.context.getState(positions=True, velocities=True, parameters=True)
    assert openmm.XmlSerializer.serialize(before) == openmm.XmlSerializer.serialize(after)
    assert simulation.currentStep == 0
    assert first.values.shape == (8, 3, 1)
    assert first.time_spacing == pytest.approx(0.01)
    assert first.force_evaluations == 8 * 21
    assert len(np.unique(first.values[:, -1])) == 8
    np.testing.assert_array_equal(first.starts, [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_allclose(first.values[:, 0, 0], 0.15, atol=1e-5)
    with make_executor(2) as executor:
        again = run_bursts(simulation, starts, [cv], steps=20, interval=10, seed=1, copies=2, executor=executor)
    np.testing.assert_array_equal(first.values, again.values)
    other = run_bursts(simulation, starts, [cv], steps=20, interval=10, seed=2, copies=2)
    assert (first.values[:, 1:] != other.values[:, 1:]).all()


def test_a_burst_that_fails_is_named_and_left_out() -> None:
    """Fails when the failure is laid to another burst."""
    simulation = triatomic_simulation()
    (cv,) = triatomic().cvs
    starts = np.repeat(triatomic().positions[None], 12, axis=0)
    starts[3] = np.nan
    bursts = run_bursts(simulation, starts, [cv], steps=20, interval=5, seed=1)
    assert list(bursts.failures) == [3]
    assert np.isnan(bursts.values[3]).all()
    assert np.isfinite(np.delete(bursts.values, 3, axis=0)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = estimate_drift_and_diffusion(bursts.values, bursts.time_spacing, CellGrid.of_cvs([cv], 4), seed=1)
    assert found.counts.sum() == 11


def test_copies_of_a_start_are_resampled_together() -> None:
    """Eight identical copies add nothing: errors are those of one. Fails when every burst is drawn on its own."""
    rng = np.random.default_rng(15)
    grid = line(-1.0, 1.0, 4)
    single = ornstein_uhlenbeck(uniform_starts(grid, 100, rng), 3, 0.01, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = estimate_drift_and_diffusion(single, 0.01, grid, seed=16, n_bootstrap=400)
        many = estimate_drift_and_diffusion(
            np.repeat(single, 8, axis=0), 0.01, grid, seed=16, n_bootstrap=400, groups=np.repeat(np.arange(400), 8)
        )
    np.testing.assert_allclose(many.drift, one.drift)
    np.testing.assert_allclose(many.drift_error, one.drift_error, rtol=0.2)


def test_cells_cut_off_from_the_rest_are_unknown() -> None:
    """Fails when a gap is bridged: the cells beyond it have no passage time and no density."""
    grid = line(0.0, 1.0, 10)
    drift = np.zeros((10, 1))
    drift[6] = np.nan
    reduced = ReducedEquation(grid, drift, np.ones((10, 1, 1)))
    np.testing.assert_array_equal(reduced.known, np.arange(10) < 6)
    np.testing.assert_allclose(reduced.stationary_density()[:6], 1 / 0.6)
    assert np.isnan(reduced.stationary_density()[6:]).all()
    assert np.isnan(reduced.mean_first_passage_times([0])[6:]).all()
    with pytest.raises(InputError, match="no cell"):
        reduced.mean_first_passage_times([8])


def test_what_cannot_be_used_is_refused() -> None:
    grid = line(-1.0, 1.0, 4)
    values = np.zeros((40, 5, 1))
    with pytest.raises(InputError, match="shape"):
        estimate_drift_and_diffusion(values[..., 0], 0.1, grid, seed=1)
    with pytest.raises(InputError, match="time_spacing"):
        estimate_drift_and_diffusion(values, 0.0, grid, seed=1)
    with pytest.raises(InputError, match="lags"):
        estimate_drift_and_diffusion(values, 0.1, grid, seed=1, lags=[0.2, 0.9])
    with pytest.raises(InputError, match="one of"):
        estimate_drift_and_diffusion(values, 0.1, grid, seed=1, lag=0.3)
    with pytest.raises(InputError, match="bursts"):
        estimate_drift_and_diffusion(values[:5], 0.1, grid, seed=1)
    with pytest.raises(InputError, match="equal steps"):
        CellGrid((np.array([0.0, 1.0, 2.0, 4.0]),), (False,))
    reduced = ReducedEquation(grid, np.zeros((4, 1)), np.ones((4, 1, 1)))
    with pytest.raises(InputError, match="share"):
        reduced.committor([0, 1], [1, 2])
    with pytest.raises(InputError, match="starts"):
        reduced.simulate([[3.0]], time_step=0.1, steps=1, interval=1, seed=1)
    simulation = triatomic_simulation()
    (cv,) = triatomic().cvs
    with pytest.raises(InputError, match="shape"):
        run_bursts(simulation, triatomic().positions, [cv], steps=10, interval=5, seed=1)
    with pytest.raises(InputError, match="multiple"):
        run_bursts(simulation, triatomic().positions[None], [cv], steps=10, interval=4, seed=1)
