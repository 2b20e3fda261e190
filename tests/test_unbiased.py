"""Generator moves alone, thousands of them in a small context without any MD, against a law in closed form.

A particle on a ring: its angle θ = 2π t, t the CV, has a density ∝ exp(−0.8 cos θ), its radius and its height are
harmonic, and all three are independent. Proposals have a density in closed form as well, and are no good: too wide,
and at labels of which most are wrong. Whatever is left out of a move shows in the mean of cos θ. MD would hide it:
steps in between pull the particle back to where it belongs.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import openmm
import pytest
import torch
from openmm import app
from scipy import stats
from scipy.special import i0e, i1e

from openmm_sgm.cvs import ExpressionCV
from openmm_sgm.generator import Samples
from openmm_sgm.system import MolecularSystem
from openmm_sgm.unbiased import LabelDistribution, UnbiasedMoves
from openmm_sgm.units import thermal_energy
from openmm_sgm.windows import WindowGrid

TEMPERATURE_K = 300.0
KT = thermal_energy(TEMPERATURE_K)
TILT = 0.8
"""Of the ring, in kT: U = TILT kT cos θ, least at θ = π, where the angle's range ends."""
RADIAL = 400.0
"""Force constant (kJ/mol/nm²) of radius and height."""
WIDTH = float(np.sqrt(KT / RADIAL))
MASS = 10.0
NARROW, WIDE = 0.08, 0.32
"""Widths of the umbrella √(kT/κ) in turns: of the wide one 12 % reach beyond half a turn."""
VISITS, PROPOSALS = 5000, 4
EXACT = -float(i1e(TILT) / i0e(TILT))
"""⟨cos θ⟩."""


def ring() -> MolecularSystem:
    """Return one particle on a ring of 1 nm; kT log r makes good for the area's growth with the radius."""
    system = openmm.System()
    force = openmm.CustomExternalForce(f"{RADIAL / 2}*((r-1)^2+z^2) + {KT}*(log(r) + {TILT}*x/r); r=sqrt(x^2+y^2)")
    force.addParticle(system.addParticle(MASS), [])
    system.addForce(force)
    topology = app.Topology()
    topology.addAtom("A", app.element.argon, topology.addResidue("PAR", topology.addChain()))
    turn = ExpressionCV("turn", (0,), "0.15915494309189535*atan2(y1, x1)", period=1.0)
    return MolecularSystem("ring", topology, system, np.array([[-1.0, 0.0, 0.0]]), (turn,), TEMPERATURE_K)


@dataclass(frozen=True)
class RingGenerator:
    """Stands in for a generator: θ by von Mises about the label, radius and height normal, 1.2 times too wide.

    `concentration` is that of θ about the label.
    """

    concentration: float

    @property
    def representation(self) -> SimpleNamespace:
        return SimpleNamespace(log_constraint_factor=lambda positions: torch.zeros(len(positions)))

    def sample(self, labels: np.ndarray, counts: np.ndarray, seed: int) -> Samples:
        rng = np.random.default_rng(seed)
        label_of = np.repeat(np.arange(len(labels)), counts)
        theta = rng.vonmises(2 * np.pi * labels[label_of, 0], self.concentration)
        r, z = 1 + 1.2 * WIDTH * rng.standard_normal(len(theta)), 1.2 * WIDTH * rng.standard_normal(len(theta))
        positions = np.stack([r * np.cos(theta), r * np.sin(theta), z], axis=1)[:, None]
        return Samples(positions, self.log_density(positions, labels[label_of]), np.ones(len(theta), bool), label_of)

    def log_density(self, positions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x, y, z = positions[:, 0].T
        r = np.hypot(x, y)
        angular = self.concentration * (np.cos(np.arctan2(y, x) - 2 * np.pi * labels[:, 0]) - 1)
        angular -= np.log(2 * np.pi * i0e(self.concentration))
        harmonic = -0.5 * ((r - 1) ** 2 + z**2) / (1.2 * WIDTH) ** 2 - np.log(2 * np.pi * (1.2 * WIDTH) ** 2)
        return np.asarray(angular + harmonic - np.log(r))


@dataclass(frozen=True)
class Walk:
    """A chain of n visits: positions and velocities, shape (n + 1, 3), and which visits have moved."""

    positions: np.ndarray
    velocities: np.ndarray
    moved: np.ndarray

    def cylindrical(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return angles, radii and heights, each of shape (n + 1,)."""
        x, y, z = self.positions.T
        return np.arctan2(y, x), np.hypot(x, y), z

    def z_score(self) -> float:
        """Return by how many standard errors the mean of cos θ differs from the closed form, errors by 50 blocks."""
        blocks = np.cos(self.cylindrical()[0][1:]).reshape(50, -1).mean(axis=1)
        return float((blocks.mean() - EXACT) / (blocks.std(ddof=1) / np.sqrt(len(blocks))))


def moves(width: float) -> UnbiasedMoves:
    """Return moves with an umbrella of a width (turns), and labels proposed most where the ring is least visited."""
    axis = (np.arange(18) + 0.5) / 18 - 0.5
    grid = WindowGrid((axis,), np.array([KT / width**2]), (1.0,), TEMPERATURE_K)
    often = 1 + 0.9 * np.cos(2 * np.pi * axis)
    labels = LabelDistribution((np.linspace(-0.5, 0.5, 19),), often / often.sum())
    return UnbiasedMoves(ring(), grid, RingGenerator(0.3 / (2 * np.pi * width) ** 2), labels)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def walked() -> Walk:
    """Visits one after the other, beginning at rest with a draw of the exact law."""
    mover, rng = moves(NARROW), np.random.default_rng(1)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 1.0, 0.001)
    context = openmm.Context(mover.molecule.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    theta = rng.vonmises(np.pi, TILT)
    places, moved = np.zeros((VISITS + 1, 2, 3)), np.empty(VISITS, bool)
    places[0, 0] = [np.cos(theta), np.sin(theta), 0.0]
    context.setPositions(places[0, :1])
    context.setVelocities(places[0, 1:])
    for k in range(VISITS):
        moved[k] = mover.visit(context, -1, PROPOSALS, rng)
        state = context.getState(positions=True, velocities=True)
        places[k + 1, 0] = state.getPositions(asNumpy=True)._value[0]
        places[k + 1, 1] = state.getVelocities(asNumpy=True)._value[0]
    return Walk(places[:, 0], places[:, 1], moved)


def test_visits_alone_leave_the_law_as_it_is(walked: Walk) -> None:
    """Angle, radius and height.

    With labels drawn 1.2 times too widely the mean of cos θ is 5 standard errors off; with the labels' density left
    out for proposals, 10.
    """
    assert abs(walked.z_score()) < 3.5
    assert 0.2 < walked.moved.mean() < 0.9
    _, radii, heights = walked.cylindrical()
    assert stats.kstest(radii[1::20], stats.norm(1, WIDTH).cdf).pvalue > 1e-3
    assert stats.kstest(heights[1::20], stats.norm(0, WIDTH).cdf).pvalue > 1e-3


def test_a_particle_that_was_moved_has_velocities_of_the_ensemble(walked: Walk) -> None:
    """Drawn anew at each move; where there was none they are as before.

    Without a draw the particle would still be at rest; drawn once for all moves they would not differ.
    """
    stayed = ~walked.moved
    np.testing.assert_array_equal(walked.velocities[1:][stayed], walked.velocities[:-1][stayed])
    v = walked.velocities[1:][walked.moved] / np.sqrt(KT / MASS)
    error = 1 / np.sqrt(len(v))
    assert (np.abs((v**2).mean(axis=0) - 1) < 4 * np.sqrt(2) * error).all()
    assert (np.abs((v[1:] * v[:-1]).mean(axis=0)) < 4 * error).all()


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_labels_are_drawn_from_the_umbrella(width: float) -> None:
    """Their law is ∝ exp(−bias) at the angle held: normal, and cut off half a turn away on either side.

    A normal law wound around the turn has a p-value of 2e-17 for the wide umbrella; one 1.2 times too wide, 7e-10 and
    less for either.
    """
    mover, turn = moves(width), 0.4
    labels = mover._draw_label(np.full((20_000, 1), turn), np.random.default_rng(3))
    assert ((labels >= -0.5) & (labels < 0.5)).all()
    offsets = mover.grid.difference(labels, np.full_like(labels, turn))[:, 0]
    law = stats.truncnorm(-0.5 / width, 0.5 / width, scale=width)
    assert stats.kstest(offsets, law.cdf).pvalue > 1e-3
