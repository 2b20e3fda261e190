"""Closed forms of the fast/slow systems under `systems/`, by quadrature, written apart from OpenMM's expressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openmm_sgm.units import thermal_energy

KT = thermal_energy(300.0)


def bent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """U (kJ/mol) of `bent_double_well`."""
    return 12 * ((x / 0.5) ** 2 - 1) ** 2 + 30 * (y - 1.2 * x**2) ** 2


def straight(s: np.ndarray, f: np.ndarray) -> np.ndarray:
    """U of `half_moon` and `s_shape` over slow and fast variables; the maps to the plane keep areas, or the potential
    makes good for it."""
    return 12 * ((s / 0.5) ** 2 - 1) ** 2 + 30 * f**2


def bimodal(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """U of `bimodal`: at each x two wells over y, 16 kJ/mol deep at x = 0."""
    return 4 * x**2 + 16 * ((y / 0.4) ** 2 - 1) ** 2 + 15 * x * y


def muller_brown(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """U of `muller_brown`: 0.12 kJ/mol times the potential of Müller & Brown 1979, equation 1 and table 1."""
    height = np.array([-200, -100, -170, 15])
    a, b, c = np.array([-1, -1, -6.5, 0.7]), np.array([0, 0, 11, 0.6]), np.array([-10, -10, -6.5, 0.7])
    x0, y0 = np.array([1, 0, -0.5, -1]), np.array([0, 0.5, 1.5, 1])
    dx, dy = np.asarray(x)[..., None] - x0, np.asarray(y)[..., None] - y0
    return 0.12 * (height * np.exp(a * dx**2 + b * dx * dy + c * dy**2)).sum(axis=-1)


def three_atoms(theta: np.ndarray, r: np.ndarray) -> np.ndarray:
    """U of `three_atoms` over the angle and one bond, the other integrated out, minus kT log of the volume element."""
    energy = 12 * (((theta - 2.0) / 0.4) ** 2 - 1) ** 2 + 2000 * (r - 0.15) ** 2
    return energy - KT * np.log(r**2 * np.sin(theta))


def half_moon(s: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x, y of slow and fast variables."""
    return (1 + f) * np.cos(np.pi * s / 2), (1 + f) * np.sin(np.pi * s / 2)


def s_shape(s: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x, y of slow and fast variables."""
    y = f + 0.6 * np.sin(3 * s)
    return s + 0.5 * np.sin(2 * y), y


def fast_of(name: str, positions: np.ndarray) -> np.ndarray:
    """Return the fast variable (n,) of configurations (n, n_atoms, 3), nm."""
    x, y = positions[:, -1, 0], positions[:, -1, 1]
    if name == "three_atoms":
        return np.asarray(np.linalg.norm(positions[:, 0] - positions[:, 1], axis=1))
    if name == "half_moon":
        return np.asarray(np.hypot(x, y) - 1)
    return y - 0.6 * np.sin(3 * (x - 0.5 * np.sin(2 * y))) if name == "s_shape" else y


@dataclass(frozen=True)
class FastSlow:
    """A system by its folder's name, its potential of mean force over (slow, fast), and grids that hold its mass.

    Attributes
    ----------
    potential : of arrays of slow and fast values, kJ/mol, volume elements included
    slow, fast : float64; equidistant quadrature points, the ends of `slow` beyond the CV's range
    """

    name: str
    potential: Callable[[np.ndarray, np.ndarray], np.ndarray]
    slow: np.ndarray
    fast: np.ndarray

    def density(self) -> np.ndarray:
        """Return exp(−U/kT) on the grid, shape (n_slow, n_fast), largest 1."""
        energy = self.potential(self.slow[:, None], self.fast[None])
        return np.asarray(np.exp(-(energy - energy.min()) / KT))

    def surface(self, edges: np.ndarray) -> np.ndarray:
        """Return −kT log of the probability of each bin of the slow variable, kJ/mol, minimum 0."""
        cumulative = _cumulative(self.density().sum(axis=1))
        surface = -KT * np.log(np.maximum(np.diff(np.interp(edges, self.slow, cumulative)), 1e-300))
        return np.asarray(surface - surface.min())

    def window(self, center: float, force_constant: float) -> np.ndarray:
        """Return the joint density in an umbrella window, shape (n_slow, n_fast), sum 1."""
        density = self.density() * np.exp(-0.5 * force_constant * (self.slow - center) ** 2 / KT)[:, None]
        return np.asarray(density / density.sum())

    def fast_distribution(self, center: float, force_constant: float) -> np.ndarray:
        """Return the cumulative distribution of the fast variable in a window, at the points of `fast`."""
        return _cumulative(self.window(center, force_constant).sum(axis=0))

    def slow_distribution(self, center: float, force_constant: float) -> np.ndarray:
        """Return the cumulative distribution of the slow variable in a window, at the points of `slow`."""
        return _cumulative(self.window(center, force_constant).sum(axis=1))


def _cumulative(density: np.ndarray) -> np.ndarray:
    """Return the integral of a density (n,) up to each point, the last 1, by the trapezoidal rule."""
    integral = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return np.asarray(integral / integral[-1])


SYSTEMS = (
    FastSlow("bent_double_well", bent, np.linspace(-1.4, 1.4, 1401), np.linspace(-2, 5, 1401)),
    FastSlow("half_moon", straight, np.linspace(-1.4, 1.4, 1401), np.linspace(-0.99, 1.5, 801)),
    FastSlow("s_shape", straight, np.linspace(-1.4, 1.4, 1401), np.linspace(-1.5, 1.5, 801)),
    FastSlow("bimodal", bimodal, np.linspace(-2, 2, 1601), np.linspace(-1, 1, 801)),
    FastSlow("muller_brown", muller_brown, np.linspace(-2.2, 1.8, 1601), np.linspace(-1.2, 3, 1601)),
    FastSlow("three_atoms", three_atoms, np.linspace(0.6, 3.1, 1601), np.linspace(0.02, 0.28, 801)),
)
