"""Samples of harmonic umbrella windows made without any simulation, with their closed-form free energies."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from openmm_sgm.frames import GENERATED, MD, Frames
from openmm_sgm.importance import Draws
from openmm_sgm.units import thermal_energy
from openmm_sgm.windows import WindowGrid

TEMPERATURE_K = 300.0
KT = thermal_energy(TEMPERATURE_K)
STIFFNESS = 30.0
"""kJ/mol/unit² of the one coordinate x, U = ½ STIFFNESS x²."""
UMBRELLA = 100.0
GRID = WindowGrid((np.linspace(-1.2, 1.2, 9),), np.array([UMBRELLA]), (None,), TEMPERATURE_K)
CENTERS = GRID.centers[:, 0]
EXACT = 0.5 * STIFFNESS * UMBRELLA / (STIFFNESS + UMBRELLA) * CENTERS**2 / KT
"""Free energies of the windows in kT, up to a constant."""
WIDTH = np.sqrt(KT / (STIFFNESS + UMBRELLA))
MEANS = UMBRELLA * CENTERS / (STIFFNESS + UMBRELLA)
EDGES = (np.linspace(-1.3, 1.3, 14),)


def frames(x: np.ndarray, windows: np.ndarray, log_weights: np.ndarray, source: int) -> Frames:
    """Return frames of one atom on a line at x, energies included."""
    positions = np.zeros((len(x), 1, 3))
    positions[:, 0, 0] = x
    return Frames(
        positions=positions,
        forces=np.zeros_like(positions),
        energies=0.5 * STIFFNESS * x**2,
        cvs=x[:, None],
        labels=GRID.centers[windows],
        windows=windows,
        log_weights=log_weights,
        source=np.full(len(x), source),
    )


def chain(n: int, rng: np.random.Generator, memory: float = 0.0, windows: np.ndarray | None = None) -> Frames:
    """Return `n` samples of each window as an autoregressive process with correlation `memory` from one to the next."""
    which = np.arange(len(CENTERS)) if windows is None else windows
    parts = []
    for window in which:
        noise = rng.standard_normal(n)
        for k in range(1, n):
            noise[k] = memory * noise[k - 1] + np.sqrt(1 - memory**2) * noise[k]
        parts.append(frames(MEANS[window] + WIDTH * noise, np.full(n, window), np.zeros(n), MD))
    return Frames.concatenate(parts)


def draws(n: int, rng: np.random.Generator, stretch: float = 1.2, bias_scale: float = 1.0) -> Draws:
    """Return `n` draws of each window from a Gaussian that is `stretch` times too wide and shifted, exactly weighted.

    bias_scale : other than 1 gives wrong weights, as of another force constant
    """
    windows = np.repeat(np.arange(len(CENTERS)), n)
    center, width = MEANS[windows] + 0.3 * WIDTH, stretch * WIDTH
    x = center + width * rng.standard_normal(len(windows))
    log_q = -0.5 * ((x - center) / width) ** 2 - np.log(width * np.sqrt(2 * np.pi))
    bias = bias_scale * GRID.reduced_bias(x[:, None], GRID.centers[windows])
    log_weights = -0.5 * STIFFNESS * x**2 / KT - bias - log_q
    return Draws(frames(x, windows, log_weights, GENERATED), np.full(len(CENTERS), n))


def exact_surface() -> np.ndarray:
    """Return the free energy of each bin of EDGES, kJ/mol, up to a constant."""
    mass = np.diff(norm.cdf(EDGES[0], scale=np.sqrt(KT / STIFFNESS)))
    return np.asarray(-KT * np.log(mass))
