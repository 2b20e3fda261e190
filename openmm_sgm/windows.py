"""The grid of umbrella windows over CV space: centres, force constants, neighbours, biases."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .cvs import CollectiveVariable
from .labels import LabelSpace
from .units import thermal_energy

__all__ = ["WindowGrid"]

PERIODIC_WINDOWS = 18
STIFF_WINDOWS = 36
WINDOWS = 12
OVERLAP = 1.8
"""Default spacing of windows in units of an umbrella's own width √(kT/κ)."""


@dataclass(frozen=True)
class WindowGrid:
    """Windows on a regular grid; a window is named by its flat index.

    Attributes
    ----------
    axes : per CV, window centres along it
    force_constants : float64, shape (n_cvs,), kJ/mol/unit²
    periods : per CV, its period or None
    temperature_k : sets the width of an umbrella
    ladder : the temperatures (K) that a generator is conditioned on, the target's first; empty for one temperature
    """

    axes: tuple[np.ndarray, ...]
    force_constants: np.ndarray
    periods: tuple[float | None, ...]
    temperature_k: float
    ladder: tuple[float, ...] = ()

    @staticmethod
    def over(
        cvs: Sequence[CollectiveVariable],
        temperature_k: float,
        ladder: tuple[float, ...] = (),
        stiff: Container[tuple[int, ...]] = (),
    ) -> WindowGrid:
        """Return the grid for `cvs`: what a CV does not say is 18 windows a period, or 12 over a range.

        A force constant that is not given makes neighbours overlap: the spacing is 1.8 widths of the umbrella. For
        torsions at 300 K that is 66 kJ/mol/rad². An umbrella that is softer than a barrier is curved does not hold a
        walker on it. Along a peptide bond that is 120 kJ/mol/rad² and more (a barrier of 60 over 90°): torsions whose
        atoms are in `stiff` have 36 windows, of 265.
        """
        axes, constants = [], []
        for cv in cvs:
            assert cv.minimum is not None
            assert cv.maximum is not None
            count = cv.windows or (WINDOWS if cv.period is None else PERIODIC_WINDOWS)
            if not (cv.windows or cv.force_constant) and tuple(cv.atoms) in stiff:
                count = STIFF_WINDOWS
            spacing = (cv.maximum - cv.minimum) / count
            axes.append(cv.minimum + (np.arange(count) + 0.5) * spacing)
            constants.append(cv.force_constant or thermal_energy(temperature_k) * (OVERLAP / spacing) ** 2)
        return WindowGrid(tuple(axes), np.array(constants), tuple(cv.period for cv in cvs), temperature_k, ladder)

    @property
    def shape(self) -> tuple[int, ...]:
        """Windows along each CV."""
        return tuple(len(axis) for axis in self.axes)

    @cached_property
    def centers(self) -> np.ndarray:
        """float64, shape (n_windows, n_cvs); the centre of every window of the grid."""
        return np.stack([grid.ravel() for grid in np.meshgrid(*self.axes, indexing="ij")], axis=1)

    @cached_property
    def label_space(self) -> LabelSpace:
        """The space of labels that a generator is conditioned on."""
        spacings = [axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in self.axes]
        low = tuple(float(axis[0] - spacing / 2) for axis, spacing in zip(self.axes, spacings, strict=True))
        high = tuple(float(axis[-1] + spacing / 2) for axis, spacing in zip(self.axes, spacings, strict=True))
        if self.ladder:
            return LabelSpace(
                (*self.periods, None), (*low, 0.0), (*high, float(np.log(self.ladder[-1] / self.ladder[0]))), True
            )
        return LabelSpace(self.periods, low, high)

    def labels(self, points: np.ndarray) -> np.ndarray:
        """Return what a generator is told of points (n, n_cvs) of CV space at this temperature, (n, n_labels)."""
        if not self.ladder:
            return np.asarray(points)
        column = np.full((len(points), 1), np.log(self.temperature_k / self.ladder[0]))
        return np.hstack([points, column])

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return a − b over the last axis (n_cvs), wrapped for periodic CVs."""
        delta = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
        for k, period in enumerate(self.periods):
            if period is not None:
                delta[..., k] -= period * np.floor(delta[..., k] / period + 0.5)
        return delta

    def reduced_bias(self, cvs: np.ndarray, centers: np.ndarray) -> np.ndarray:
        """Return ½ Σ κ d² / kT, broadcast over the leading axes of `cvs` and `centers`, both (..., n_cvs)."""
        scale = 0.5 * self.force_constants / thermal_energy(self.temperature_k)
        total: np.ndarray | float = 0.0
        for k, period in enumerate(self.periods):  # one CV at a time: these arrays are the largest there are
            delta = np.asarray(cvs)[..., k] - np.asarray(centers)[..., k]
            if period is not None:
                delta = delta - period * np.floor(delta / period + 0.5)
            total = total + scale[k] * delta**2
        return np.asarray(total)

    def nearest(self, cvs: np.ndarray) -> int:
        """Return the window whose centre is closest to the point `cvs`, shape (n_cvs,)."""
        return int(self.reduced_bias(cvs, self.centers).argmin())

    def neighbours(self, window: int) -> list[int]:
        """Return the windows one step away along one CV."""
        here = np.unravel_index(window, self.shape)
        found = []
        for k, step in itertools.product(range(len(self.shape)), (-1, 1)):
            there = [int(i) for i in here]
            there[k] += step
            if self.periods[k] is not None:
                there[k] %= self.shape[k]
            if 0 <= there[k] < self.shape[k]:
                found.append(int(np.ravel_multi_index(tuple(there), self.shape)))
        return [w for w in dict.fromkeys(found) if w != window]
