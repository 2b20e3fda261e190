"""Transition models of motion with memory: one particle with inertia in a double well, against quadrature."""

from __future__ import annotations

import numpy as np
import pytest

from openmm_sgm.cells import CellGrid
from openmm_sgm.transitions import TransitionModel, estimate_transitions, reversible_law
from openmm_sgm.units import InputError

KT, BARRIER, FRICTION = 1.0, 3.0, 2.0
STEP, SPACING = 0.01, 0.05
GRID = CellGrid((np.linspace(-1.8, 1.8, 19),), (False,))
LEFT, RIGHT = GRID.centers[:, 0] < -0.7, GRID.centers[:, 0] > 0.7


def potential(x: np.ndarray) -> np.ndarray:
    """V(x) = h (x² − 1)² + 0.3 x, unit mass."""
    return BARRIER * (x**2 - 1) ** 2 + 0.3 * x


def paths(starts: np.ndarray, time: float, rng: np.random.Generator) -> np.ndarray:
    """Langevin motion by BAOAB (Leimkuhler & Matthews 2013), velocities drawn anew; shape (n, n_times, 1)."""
    keep, noise = np.exp(-FRICTION * STEP), np.sqrt(KT * (1 - np.exp(-2 * FRICTION * STEP)))
    x, v = starts.copy(), rng.normal(size=len(starts)) * np.sqrt(KT)
    out, every = [x.copy()], round(SPACING / STEP)
    for step in range(1, round(time / STEP) + 1):
        v -= 0.5 * STEP * (4 * BARRIER * x * (x**2 - 1) + 0.3)
        x += 0.5 * STEP * v
        v = keep * v + noise * rng.normal(size=len(x))
        x += 0.5 * STEP * v
        v -= 0.5 * STEP * (4 * BARRIER * x * (x**2 - 1) + 0.3)
        if step % every == 0:
            out.append(x.copy())
    return np.stack(out, axis=1)[..., None]


def equilibrium_starts(per_cell: int, rng: np.random.Generator) -> np.ndarray:
    """Boltzmann's law within each cell, by inversion on a fine grid."""
    starts = []
    for low, high in zip(GRID.edges[0][:-1], GRID.edges[0][1:], strict=True):
        x = np.linspace(low, high, 400)
        p = np.exp(-potential(x) / KT)
        starts.append(rng.choice(x, per_cell, p=p / p.sum()))
    return np.concatenate(starts)


def exact_free_energy() -> np.ndarray:
    x = np.linspace(-1.8, 1.8, 18 * 200 + 1)
    p = np.exp(-0.5 * (potential(x[1:]) + potential(x[:-1])) / KT).reshape(18, 200).sum(axis=1)
    return -KT * np.log(p / p.max())


@pytest.fixture(scope="module")
def model() -> TransitionModel:
    rng = np.random.default_rng(1)
    values = paths(equilibrium_starts(1500, rng), 4.0, rng)
    return estimate_transitions(values, SPACING, GRID, lag=4.0, seed=2, n_bootstrap=30)


def scaled_deviation(lag: float, starts: np.ndarray, seed: int) -> tuple[float, float]:
    """Return RMS deviation of −kT log of the stationary law from the exact one, kT, and RMS of it in errors."""
    rng = np.random.default_rng(seed)
    found = estimate_transitions(paths(starts, lag, rng), SPACING, GRID, lag=lag, seed=3, n_bootstrap=40)
    surface = found.surface(KT / 0.00831446261815324)
    exact = exact_free_energy()
    low = exact < 8
    difference = (surface.free_energy - exact)[low]
    difference -= difference.mean()
    return float(np.sqrt(np.mean(difference**2))), float(np.sqrt(np.mean((difference / surface.std_error[low]) ** 2)))


@pytest.mark.parametrize("lag", [0.05, 0.4, 2.0])
def test_stationary_law_is_exact_at_any_lag(lag: float) -> None:
    """The velocity's memory is 0.5 ps, so that no lag here is Markovian; seen to fail with starts that are uniform in
    their cells (9 errors at 0.05 ps), which the next test keeps."""
    rms, in_errors = scaled_deviation(lag, equilibrium_starts(1500, np.random.default_rng(7)), 8)
    assert rms < 0.2
    assert in_errors < 1.7  # χ² of 16 neighbouring cells, whose errors go together


def test_starts_that_are_no_equilibrium_sample_are_seen() -> None:
    uniform = np.repeat(GRID.centers[:, 0], 1500) + np.random.default_rng(7).uniform(-0.1, 0.1, 18 * 1500)
    assert scaled_deviation(0.05, uniform, 8)[1] > 3


def test_passage_time_is_that_of_long_paths(model: TransitionModel) -> None:
    """Seen to fail when every burst's time is taken for the lag, and when passages are seen at the lag only."""
    rng = np.random.default_rng(5)
    start = equilibrium_starts(400, rng)
    start = start[LEFT[GRID.cells_of(start[:, None])]]
    x = np.linspace(-1.8, -0.7, 2000)
    p = np.exp(-potential(x) / KT)
    long = paths(rng.choice(x, 2000, p=p / p.sum()), 250.0, rng)[:, :, 0]
    reached = np.isin(GRID.cells_of(long.reshape(-1, 1)), np.flatnonzero(RIGHT)).reshape(long.shape)
    assert reached.any(axis=1).mean() > 0.97
    times = np.where(reached.any(axis=1), reached.argmax(axis=1) * SPACING, 250.0)
    direct, direct_error = times.mean(), times.std() / np.sqrt(len(times))
    time, error = model.mean_first_passage_time(LEFT, RIGHT)
    assert error < 0.1 * time
    assert abs(time - direct) < 2.5 * np.hypot(error, direct_error) + 0.03 * direct  # of the paths cut at 250 ps


def test_time_to_leave_the_barrier_is_that_of_paths(model: TransitionModel) -> None:
    """Most bursts end here, so that their own times count: seen to fail when each is taken for the lag."""
    rng = np.random.default_rng(6)
    x = rng.uniform(-0.1, 0.1, 4000)  # of the two cells at the top, where the law is nearly even
    seen = paths(x, 12.0, rng)[:, :, 0]
    out = np.isin(GRID.cells_of(seen.reshape(-1, 1)), np.flatnonzero(LEFT | RIGHT)).reshape(seen.shape)
    assert out.any(axis=1).mean() > 0.99
    times = out.argmax(axis=1)[out.any(axis=1)] * SPACING
    top = np.flatnonzero(np.abs(GRID.centers[:, 0]) < 0.15)
    found, error = model.mean_first_passage_times(LEFT | RIGHT)
    assert abs(found[top].mean() - times.mean()) < 3 * np.hypot(error[top].mean(), times.std() / 60) + 0.02


def test_committor_is_half_at_the_top_and_rises(model: TransitionModel) -> None:
    q, error = model.committor(LEFT, RIGHT)
    assert (q[LEFT & model.known] == 0).all()
    assert (q[RIGHT & model.known] == 1).all()
    middle = ~(LEFT | RIGHT)
    assert (np.diff(q[middle]) > -3 * error[middle][1:]).all()
    top = np.abs(GRID.centers[:, 0]) < 0.15
    assert np.abs(q[top].mean() - 0.5) < 0.06
    with pytest.raises(InputError, match="share"):
        model.committor(LEFT, LEFT)


def test_reversible_law_of_a_chain_that_is_known() -> None:
    law = np.array([0.5, 0.3, 0.15, 0.05])
    flow = np.outer(law, law)
    counts = flow / flow.sum(axis=1, keepdims=True) * np.array([10.0, 400.0, 3.0, 70.0])[:, None]
    assert np.allclose(reversible_law(counts, np.ones(4)), law, rtol=1e-6)


def test_a_burst_that_leaves_the_known_cells_leaves_the_law_as_it_is() -> None:
    """Starts only where x > −0.5: the law of those cells is what it was; seen to fail when such bursts are dropped."""
    starts = equilibrium_starts(3000, np.random.default_rng(7))
    starts = starts[GRID.edges[0][6] < starts]
    found = estimate_transitions(
        paths(starts, 0.4, np.random.default_rng(8)), SPACING, GRID, lag=0.4, seed=3, n_bootstrap=40
    )
    assert found.known.sum() >= 10
    density, error = found.stationary_density()
    exact = np.exp(-exact_free_energy()[found.known])
    exact /= exact.sum() * GRID.spacing[0]
    z = (density[found.known] - exact) / error[found.known]
    assert np.sqrt(np.mean(z**2)) < 1.7


def test_refusals() -> None:
    values = np.zeros((20, 3, 1))
    with pytest.raises(InputError, match="lags must increase"):
        estimate_transitions(values, 0.1, GRID, lag=0.5, seed=1)
    with pytest.raises(InputError, match="no cell has 8"):
        estimate_transitions(values[:5], 0.1, GRID, lag=0.1, seed=1)
    found = estimate_transitions(values, 0.1, GRID, lag=0.1, seed=1)
    with pytest.raises(InputError, match="no cell that enough bursts"):
        found.mean_first_passage_times(np.array([0]))
