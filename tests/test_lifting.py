"""Lift and restrict: the label's umbrella ensemble in closed form, densities, and warnings away from the data."""

from __future__ import annotations

import warnings

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from scipy import stats

import openmm_sgm as sgm
from openmm_sgm.cartesian import fit_cartesian
from openmm_sgm.generator import Generator
from openmm_sgm.guidance import GuidedLifting
from openmm_sgm.lifting import KernelDensityLifting, Lifting, MonteCarloScoreLifting, NearestLifting
from openmm_sgm.networks import NetworkOptions, ScoreNetwork
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import InputError, thermal_energy
from openmm_sgm.windows import WindowGrid

KT = thermal_energy(300.0)
STIFF, BEND = 60.0, 1.5
"""kJ/mol/nm²: U = ½ 20 x² + ½ STIFF (y − BEND x)² + ½ STIFF z²."""


def plane() -> MolecularSystem:
    system, topology = openmm.System(), app.Topology()
    force = openmm.CustomExternalForce(f"10*x^2 + {STIFF / 2}*(y-{BEND}*x)^2 + {STIFF / 2}*z^2")
    force.addParticle(system.addParticle(10.0), [])
    system.addForce(force)
    topology.addAtom("A", app.element.argon, topology.addResidue("PAR", topology.addChain()))
    cv = sgm.Position("x", (0,), "x", -1.0, 1.0)
    return MolecularSystem("plane", topology, system, np.zeros((1, 3)), (cv,), 300.0)


def exact_window(center: float, constant: float) -> tuple[float, float, float, float]:
    """Return mean and standard deviation of x and of y in the window: Gaussians."""
    stiffness = 20 + constant
    mean, variance = constant * center / stiffness, KT / stiffness
    return mean, np.sqrt(variance), BEND * mean, np.sqrt(BEND**2 * variance + KT / STIFF)


MOLECULE = plane()
GRID = WindowGrid.over(MOLECULE.cvs, 300.0)
CONSTANT = float(GRID.force_constants[0])
RNG = np.random.default_rng(4)
X = RNG.uniform(-0.8, 0.8, 20_000)
"""Uniform, with the weights of the unbiased ensemble."""
POSITIONS = np.stack(
    [
        X,
        BEND * X + np.sqrt(KT / STIFF) * RNG.standard_normal(len(X)),
        np.sqrt(KT / STIFF) * RNG.standard_normal(len(X)),
    ],
    axis=1,
)[:, None]
LOG_WEIGHTS = -10 * X**2 / KT


def untrained() -> Generator:
    """Return a generator with a representation that fits the data, and a network that knows nothing."""
    rows = RNG.choice(len(X), 4000)
    labels = X[rows, None] + np.sqrt(KT / CONSTANT) * RNG.standard_normal((4000, 1))
    representation = fit_cartesian(POSITIONS[rows], labels, GRID.label_space)
    torch.manual_seed(1)
    features = GRID.label_space.features(torch.as_tensor(labels[:1])).shape[1] - 1
    return Generator(representation, ScoreNetwork(3, 0, features, NetworkOptions(16, 16, 16)).requires_grad_(False))


@pytest.fixture(scope="module")
def liftings() -> dict[str, Lifting]:
    arguments = (MOLECULE, GRID, POSITIONS, LOG_WEIGHTS)
    generator = untrained()
    return {
        "nearest": NearestLifting(*arguments),
        "kernel": KernelDensityLifting(*arguments, generator),
        "monte carlo": MonteCarloScoreLifting(*arguments, generator),
    }


@pytest.mark.parametrize(("name", "widened"), [("nearest", 0.0), ("kernel", 0.3), ("monte carlo", 0.3)])
@pytest.mark.parametrize("center", [-0.5, 0.1])
def test_the_lifted_law_is_the_window_s(liftings: dict[str, Lifting], name: str, widened: float, center: float) -> None:
    """Means within four standard errors; widths too, but for the kernels' own, which may widen them by so much.

    Seen to fail without the weights of the data, and with half of the umbrella's force constant.
    """
    n = 800
    lifted = liftings[name].lift({"x": center}, n, seed=3)
    values = liftings[name].restrict(lifted.positions)["x"], lifted.positions[:, 0, 1]
    mean_x, width_x, mean_y, width_y = exact_window(center, CONSTANT)
    for drawn, mean, width in zip(values, (mean_x, mean_y), (width_x, width_y), strict=True):
        few = min(n, lifted.effective)
        assert abs(drawn.mean() - mean) < 4 * width / np.sqrt(few)
        assert 1 - 4 / np.sqrt(2 * few) < drawn.std() / width < 1 + widened + 4 / np.sqrt(2 * few)
    assert not lifted.extrapolated


@pytest.mark.parametrize("name", ["kernel", "monte carlo"])
def test_the_density_is_that_of_the_draws(liftings: dict[str, Lifting], name: str) -> None:
    """⟨p/q⟩ = 1 for a normalised p within the draws' law. Seen to fail without the volume of the coordinates."""
    lifted = liftings[name].lift({"x": 0.0}, 1000, seed=5)
    x = lifted.positions[:, 0]
    narrow = 0.6
    mean, width_x, _, _ = exact_window(0.0, CONSTANT)
    log_p = stats.norm.logpdf(x[:, 0], mean, narrow * width_x)
    log_p += stats.norm.logpdf(x[:, 1], BEND * x[:, 0], narrow * np.sqrt(KT / STIFF))
    log_p += stats.norm.logpdf(x[:, 2], 0.0, narrow * np.sqrt(KT / STIFF))
    ratio = np.exp(log_p - lifted.log_density)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(ratio))
    assert ratio.std() / np.sqrt(len(ratio)) < 0.08


@pytest.mark.parametrize("center", [-0.5, 0.1])
def test_guidance_is_exact_where_everything_is_gaussian(center: float) -> None:
    """A network that is zero has the score of a Gaussian. Seen to fail without the variance of what z may become."""
    rng, n = np.random.default_rng(6), 1000
    p = np.exp(LOG_WEIGHTS)
    rows = rng.choice(len(X), 6000, p=p / p.sum())
    somewhere = np.repeat(GRID.centers[:1], len(rows), axis=0)
    representation = fit_cartesian(POSITIONS[rows], somewhere, GRID.label_space)
    features = GRID.label_space.features(torch.as_tensor(somewhere[:1])).shape[1] - 1
    network = ScoreNetwork(3, 0, features, NetworkOptions(16, 16, 16)).requires_grad_(False)
    lifting = GuidedLifting(MOLECULE, GRID, X[:, None], Generator(representation, network))
    positions = lifting.lift({"x": center}, n, seed=2).positions[:, 0]
    mean_x, width_x, mean_y, width_y = exact_window(center, CONSTANT)
    for drawn, mean, width in ((positions[:, 0], mean_x, width_x), (positions[:, 1], mean_y, width_y)):
        assert abs(drawn.mean() - mean) < (4 / np.sqrt(n) + 0.1) * width  # 0.1 for the fit of the covariance
        assert abs(drawn.std() / width - 1) < 4 / np.sqrt(2 * n) + 0.05


def test_nothing_new_comes_of_the_nearest(liftings: dict[str, Lifting]) -> None:
    lifted = liftings["nearest"].lift({"x": 0.3}, 50, seed=1)
    assert np.isin(lifted.positions[:, 0, 0], X).all()
    assert np.isnan(lifted.log_density).all()


def test_extrapolation_is_said(liftings: dict[str, Lifting]) -> None:
    beyond = NearestLifting(MOLECULE, GRID, POSITIONS + np.array([0.5, 0.0, 0.0]), LOG_WEIGHTS)
    with pytest.warns(sgm.ExtrapolationWarning):  # there is data, but not in the range of the CV
        assert beyond.lift({"x": 1.2}, 3).effective == 0
    heavy = LOG_WEIGHTS.copy()
    heavy[np.abs(X).argmin()] += 20.0  # one configuration has all of the weight, or those near have none
    nothing_near = np.where(np.abs(X) < 0.3, -np.inf, LOG_WEIGHTS)
    for log_weights in (heavy, nothing_near):
        with pytest.warns(sgm.ExtrapolationWarning):
            assert NearestLifting(MOLECULE, GRID, POSITIONS, log_weights).lift({"x": 0.0}, 3).extrapolated
    for lifting in liftings.values():
        with pytest.warns(sgm.ExtrapolationWarning, match="hardly any data near"):
            assert lifting.lift({"x": 2.0 * unit.nanometer}, 3).extrapolated
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lifting.lift({"x": 3.0 * unit.angstrom}, 3)


@pytest.mark.parametrize(
    ("values", "n", "said"),
    [
        ({"y": 0.1}, 3, "give a value for each of x, got y"),
        ({}, 3, "give a value for each of x, got none"),
        ([0.1], 3, "give the values by name"),
        ({"x": 1 * unit.kelvin}, 3, "CV 'x': a value must be a number or a Quantity"),
        ({"x": 0.1}, 0, "must be 1 or more"),
    ],
)
def test_bad_input_is_refused(liftings: dict[str, Lifting], values: object, n: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        liftings["kernel"].lift(values, n)  # type: ignore[arg-type]


def test_degrees_without_a_unit_are_refused(alanine: MolecularSystem) -> None:
    """They were wrapped as radians: −60 became 162°."""
    grid = WindowGrid.over(alanine.cvs, alanine.temperature_k)
    lifting = NearestLifting(alanine, grid, alanine.positions[None], np.zeros(1))
    for phi, psi in ((-60, 1.0), (1.0, 120.0), (-6.5, 0.0)):
        with pytest.raises(InputError, match="is more than a full turn: angles are in radians, or Quantities"):
            lifting.label({"phi": phi, "psi": psi})
    with pytest.raises(
        InputError, match=r"the torsions 5 and -6 are all beyond half a turn: .* radians, or Quantities"
    ):
        lifting.label({"phi": 5, "psi": -6})
    for phi, psi in ((3.5, -0.7), (2 * np.pi, np.pi), (-np.pi, np.pi)):  # legitimate ways to write angles
        expected = np.angle(np.exp(1j * np.array([phi, psi])))
        found = lifting.label({"phi": phi, "psi": psi})
        np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * expected), atol=1e-12)
    quantities = lifting.label({"phi": 300 * unit.degree, "psi": -200 * unit.degree})
    np.testing.assert_allclose(quantities, np.radians([-60, 160]))
