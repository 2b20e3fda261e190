"""Diffusion maps against closed forms, and learned CVs against finite differences, OpenMM, and their own data."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from conftest import energy, forces, reference_context
from scipy.linalg import eigvalsh_tridiagonal
from scipy.stats import spearmanr

from openmm_sgm.cv_functions import MLP, DiffusionCoordinate, LinearProjection, tica_component
from openmm_sgm.diffusion_maps import DiffusionMap, choose_bandwidth, fit_diffusion_map
from openmm_sgm.features import Coordinates, Features, PairDistances
from openmm_sgm.learned import OffSupportWarning, TorchCV, diffusion_cv, distil
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import InputError

# Data with a known slow coordinate


def double_well(rng: np.random.Generator, n: int) -> np.ndarray:
    """n draws of exp(−2 (x² − 1)²), the slow variable."""
    grid = np.linspace(-2.2, 2.2, 4001)
    cumulative = np.cumsum(np.exp(-2 * (grid**2 - 1) ** 2))
    return np.interp(rng.random(n), cumulative / cumulative[-1], grid)


def half_moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = np.pi * x / 4
    return np.stack([(1 + y) * np.cos(angle), (1 + y) * np.sin(angle)], axis=1)


def s_shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x, np.sin(2 * x) + y], axis=1)


@pytest.fixture(scope="module")
def moon() -> DiffusionMap:
    rng = np.random.default_rng(3)
    points = half_moon(double_well(rng, 600), rng.normal(scale=0.1, size=600))
    return fit_diffusion_map(points, n_coordinates=2)


@pytest.mark.parametrize("bend", [half_moon, s_shape])
def test_first_coordinate_is_the_slow_variable_of_a_bent_double_well(bend) -> None:
    """By Nyström, of other points as well. Seen to fail for the S with 100 times the bandwidth."""
    rng = np.random.default_rng(1)
    x = double_well(rng, 1600)
    points = bend(x, rng.normal(scale=0.1, size=1600))
    found = fit_diffusion_map(points[:1200], n_coordinates=2)
    assert abs(spearmanr(found.eigenvectors[:, 0], x[:1200]).statistic) >= 0.99
    assert abs(spearmanr(found.coordinates(points[1200:])[:, 0], x[1200:]).statistic) >= 0.99


def uneven_strip(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """How far along a bent strip, evenly sampled, 2.5 by 1, and points; the middle across is hardly sampled."""
    across = np.concatenate([rng.normal(0.2, 0.06, n // 2), rng.normal(0.8, 0.06, n // 2), rng.random(n // 5)])
    across = across[(across > 0) & (across < 1)]
    along = rng.random(len(across))
    return along, np.stack([(2 + across) * np.cos(along), (2 + across) * np.sin(along)], axis=1)


def test_density_normalisation_removes_uneven_sampling() -> None:
    """With α = 1 the long direction comes first whatever the sampling; with α = 0 the gap in the sampling does."""
    along, points = uneven_strip(np.random.default_rng(2), 1500)
    correlation = {}
    for alpha in (1.0, 0.0):
        found = fit_diffusion_map(points, n_coordinates=1, alpha=alpha)
        correlation[alpha] = abs(spearmanr(found.eigenvectors[:, 0], along).statistic)
    assert correlation[1.0] >= 0.99
    assert correlation[0.0] < 0.5


def test_weights_restore_the_density_of_biased_data() -> None:
    """α = ½, for which the density matters: the target has a barrier along x and none along y; the sample the reverse.

    The weights are exact. Without them the first coordinate is y.
    """
    rng = np.random.default_rng(4)
    x = rng.uniform(-1.7, 1.7, 2500)
    y = np.concatenate([rng.normal(-0.5, 0.17, 1100), rng.normal(0.5, 0.17, 1100), rng.uniform(-1, 1, 300)])

    def gaussian(center: float) -> np.ndarray:
        return np.exp(-0.5 * ((y - center) / 0.17) ** 2) / (0.17 * np.sqrt(2 * np.pi))

    sampled = (1100 * gaussian(-0.5) + 1100 * gaussian(0.5) + 150 * (np.abs(y) < 1)) / 2500
    weights = np.exp(-((x**2 - 1) ** 2) - 0.5 * (y / 0.4) ** 2) / sampled
    points = np.stack([x, y], axis=1)
    first = {
        name: fit_diffusion_map(points, n_coordinates=1, weights=w, alpha=0.5).eigenvectors[:, 0]
        for name, w in (("weighted", weights), ("plain", None))
    }
    assert abs(spearmanr(first["weighted"], x).statistic) >= 0.95
    assert abs(spearmanr(first["plain"], x).statistic) < 0.5


def test_rates_on_a_circle_are_squares_of_whole_numbers() -> None:
    """α = 1 on an unevenly sampled unit circle: −Δ has 1, 1, 4, 4, with cos and sin of θ and 2θ.

    At equal quantiles of the density there is no sampling error, and what is left is of order ε and the spacing
    squared. α = 0 misses the numbers. Seen to fail with 2ε for 4ε in the kernel.
    """
    u = (np.arange(1500) + 0.5) / 1500 * 2 * np.pi
    theta = u + 0.5 * np.sin(u)  # density 1/(1 + 0.5 cos u), a ratio of 3
    points = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    found = fit_diffusion_map(points, n_coordinates=4, bandwidth=0.002)
    assert found.rates == pytest.approx([1, 1, 4, 4], rel=0.02)
    waves = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    residual = found.eigenvectors[:, :2] - waves @ np.linalg.lstsq(waves, found.eigenvectors[:, :2])[0]
    assert np.abs(residual).max() < 0.02
    without = fit_diffusion_map(points, n_coordinates=4, bandwidth=0.002, alpha=0.0)
    assert np.abs(without.rates - [1, 1, 4, 4]).max() > 0.2


def test_rate_of_a_double_well_is_that_of_the_generator() -> None:
    """α = ½: −log λ/ε against the smallest eigenvalue of −Δ − ∇log p · ∇ on a grid, from uniform points with weights.

    The first eigenvalue is a rate over a barrier of 2 kT. Without the weights it is that of free diffusion, π²/3.4²,
    and α = 1 gives the same.
    """
    x = np.linspace(-1.7, 1.7, 500)
    p = np.exp(-2 * (x**2 - 1) ** 2)
    # The quadratic form ∫ p f'² against ∫ p f², with no flux through the ends.
    h, middle = x[1] - x[0], np.exp(-2 * (((x[1:] + x[:-1]) / 2) ** 2 - 1) ** 2)
    diagonal = (np.append(middle, 0) + np.insert(middle, 0, 0)) / p / h**2
    off = -middle / np.sqrt(p[1:] * p[:-1]) / h**2
    exact = eigvalsh_tridiagonal(diagonal, off)[1]
    found = fit_diffusion_map(x[:, None], n_coordinates=1, bandwidth=0.0005, weights=p, alpha=0.5)
    assert found.rates[0] == pytest.approx(exact, rel=0.03)
    plain = fit_diffusion_map(x[:, None], n_coordinates=1, bandwidth=0.0005, alpha=0.5)
    assert abs(plain.rates[0] / exact - 1) > 0.2


# Extension and support


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_extension_is_the_eigenvector_at_the_landmarks(alpha: float) -> None:
    """Seen to fail with the density of the landmarks, q(x_j)^−α, or their weights left out of the extension."""
    rng = np.random.default_rng(5)
    points = half_moon(double_well(rng, 300), rng.normal(scale=0.1, size=300))
    found = fit_diffusion_map(points, n_coordinates=3, weights=rng.uniform(0.2, 2, 300), alpha=alpha)
    assert found.coordinates(points) == pytest.approx(found.eigenvectors, abs=1e-4)


def test_eigenvectors_are_orthonormal_over_the_stationary_distribution(moon: DiffusionMap) -> None:
    """Seen to fail with the eigenvectors of the symmetric matrix in their place."""
    kernel = np.exp(-moon.exponents(torch.as_tensor(moon.landmarks)).numpy())
    stationary = moon.coefficients * (kernel @ moon.coefficients)
    stationary /= stationary.sum()
    assert stationary @ moon.eigenvectors == pytest.approx(0, abs=1e-5)
    assert (moon.eigenvectors.T * stationary) @ moon.eigenvectors == pytest.approx(np.eye(2), abs=1e-5)


def test_gradient_agrees_with_finite_differences_on_and_beside_the_data(moon: DiffusionMap) -> None:
    """Closed form, autograd and central differences, also where the support is between 0 and 1.

    Seen to fail with the slope of the support left out of the closed form.
    """
    module = DiffusionCoordinate(moon, 0, -3.0)
    rng = np.random.default_rng(6)
    points = half_moon(rng.uniform(-1.5, 1.5, 400), rng.uniform(-0.9, 0.9, 400))
    support = moon.support(points)
    inside, partly = points[support == 1][:20], points[(support > 0.05) & (support < 0.95)][:20]
    assert len(inside) == 20
    assert len(partly) >= 10
    h = 1e-5
    for point in np.concatenate([inside, partly]):
        value, gradient = module.value_and_gradient(point)
        leaf = torch.tensor(point[None], requires_grad=True)
        by_torch = module(leaf)
        (automatic,) = torch.autograd.grad(by_torch.sum(), leaf)
        shifted = torch.tensor(point + h * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]))
        a, b, c, d = module(shifted).tolist()
        assert value == pytest.approx(by_torch.item(), abs=1e-9)
        assert gradient == pytest.approx(automatic[0].numpy(), abs=1e-7)
        assert gradient == pytest.approx([(a - b) / (2 * h), (c - d) / (2 * h)], rel=1e-4, abs=1e-4)


def test_support_holds_the_data_and_nothing_far_from_them(moon: DiffusionMap) -> None:
    """Fresh points of the same law are on the data but for the quantile and its scatter; the moon's centre is off.

    Seen to fail with 20 times the threshold.
    """
    rng = np.random.default_rng(7)
    fresh = half_moon(double_well(rng, 2000), rng.normal(scale=0.1, size=2000))
    assert (moon.support(fresh) == 1).mean() > 0.97
    assert (moon.support(fresh) == 0).mean() < 0.01
    away = np.array([[0.0, 0.0], [-1.0, 0.0], [50.0, 0.0]])
    assert (moon.support(away) == 0).all()
    value, gradient = DiffusionCoordinate(moon, 0, -3.0).value_and_gradient(away[0])
    assert (value, gradient) == (-3.0, None)


def test_map_refuses_what_it_cannot_use() -> None:
    points = np.random.default_rng(8).normal(size=(50, 2))
    for options, message in (
        ({"weights": np.zeros(50)}, "weights must be positive"),
        ({"weights": np.ones(49)}, "one for each of the 50"),
        ({"bandwidth": 1e-6}, "fall into"),
        ({"bandwidth": -1.0}, "must be positive"),
        ({"alpha": 2.0}, "alpha"),
        ({"max_landmarks": 3}, "more than 3 points"),
    ):
        with pytest.raises(InputError, match=message):
            fit_diffusion_map(points, **{"n_coordinates": 2, **options})
    with pytest.raises(InputError, match="finite"):
        fit_diffusion_map(np.full((50, 2), np.nan), n_coordinates=1)
    with pytest.raises(InputError, match="copies"):
        choose_bandwidth(np.zeros((20, 2)))
    with pytest.raises(InputError, match="2 features"):
        fit_diffusion_map(points, n_coordinates=1, bandwidth=1.0).coordinates(np.zeros((4, 3)))


def test_of_many_points_landmarks_are_drawn_with_their_weights() -> None:
    """Seen to fail with the weights of the first points for those drawn."""
    rng = np.random.default_rng(9)
    points, weights = rng.normal(size=(500, 2)), rng.uniform(0.5, 2, 500)
    found, again, other = (
        fit_diffusion_map(points, n_coordinates=1, weights=weights, max_landmarks=200, seed=s) for s in (1, 1, 2)
    )
    index = [int(np.flatnonzero((points == landmark).all(axis=1))[0]) for landmark in found.landmarks]
    assert len(set(index)) == 200
    assert found.weights == pytest.approx(weights[index] / weights[index].mean())
    assert (found.eigenvectors == again.eigenvectors).all()
    assert (found.landmarks != other.landmarks).any()


# Collective variables


@pytest.fixture(scope="module")
def pairs(alanine: MolecularSystem) -> PairDistances:
    heavy = np.flatnonzero(alanine.masses > 2).tolist()
    return PairDistances(tuple(itertools.combinations(heavy, 2)))


@pytest.fixture(scope="module")
def alanine_map(alanine_conformations: np.ndarray, pairs: PairDistances) -> DiffusionMap:
    rng = np.random.default_rng(10)
    positions = np.repeat(alanine_conformations, 8, axis=0)
    positions = positions + rng.normal(scale=0.01, size=positions.shape)
    return fit_diffusion_map(pairs(torch.as_tensor(positions)).numpy(), n_coordinates=2, bandwidth=0.02)


def every_cv(pairs: PairDistances, found: DiffusionMap) -> dict[str, TorchCV]:
    torch.manual_seed(1)
    vector = np.random.default_rng(11).normal(size=pairs.n_features)
    return {
        "diffusion map": diffusion_cv("psi1", found, 0, pairs),
        "linear": TorchCV("tic1", LinearProjection(np.full(pairs.n_features, 0.4), vector), pairs, -50, 50),
        "network": TorchCV("net", MLP((pairs.n_features, 8, 8, 1), "silu"), pairs, -50, 50),
        "small network": TorchCV("small", MLP((pairs.n_features, 32, 1)), pairs, -50, 50),
    }


KINDS = ("diffusion map", "linear", "network", "small network")


@pytest.mark.parametrize("kind", KINDS)
def test_openmm_force_is_the_gradient_of_the_value(
    kind: str, alanine: MolecularSystem, alanine_conformations: np.ndarray, pairs: PairDistances, alanine_map
) -> None:
    """The value by mdtraj is the force's energy to single precision; its forces are central differences of it.

    Seen to fail with the sign of the force turned, an atom of a pair taken for another, or a network's last bias lost.
    """
    cv = every_cv(pairs, alanine_map)[kind]
    molecule = copy.copy(alanine)
    object.__setattr__(molecule, "cvs", (cv,))
    x = alanine_conformations[3]
    context = molecule._cv_context()
    assert cv.evaluate(alanine.trajectory(x - x.mean(axis=0)))[0] == pytest.approx(energy(context, x), abs=1e-4)
    gradient, h = -forces(context, x), 1e-5
    assert gradient == pytest.approx(molecule.cv_gradients(x[None], [0])[0, 0], abs=1e-12)
    for atom, axis in ((4, 0), (6, 1), (14, 2), (18, 0), (0, 1)):  # atom 0 is a hydrogen, and no part of the CV
        shift = np.zeros_like(x)
        shift[atom, axis] = h
        slope = (energy(context, x + shift) - energy(context, x - shift)) / (2 * h)
        assert gradient[atom, axis] == pytest.approx(slope, rel=1e-4, abs=1e-4)
    assert np.abs(gradient).max() > 0.01


def bias_energy(xml: str, positions: np.ndarray, center: float, force_constant: float) -> float:
    context = reference_context(openmm.XmlSerializer.deserialize(xml))
    context.setParameter("sgm0_center", center)
    context.setParameter("sgm0_force_constant", force_constant)
    return energy(context, positions)


def bias_system(cv: TorchCV, n_atoms: int) -> openmm.System:
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(1.0)
    system.addForce(cv.bias_force("sgm0"))
    return system


def test_umbrella_survives_xml_and_another_process(
    alanine: MolecularSystem, alanine_conformations: np.ndarray, pairs: PairDistances, alanine_map
) -> None:
    """½ k d² with the parameters of the context, after `copy.deepcopy`, XML and a new interpreter."""
    x = alanine_conformations[5]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for cv in every_cv(pairs, alanine_map).values():
            xml = openmm.XmlSerializer.serialize(copy.deepcopy(bias_system(cv, alanine.n_atoms)))
            value = cv.evaluate(alanine.trajectory(x - x.mean(axis=0)))[0]
            here = bias_energy(xml, x, 0.25, 30.0)
            assert here == pytest.approx(0.5 * 30.0 * (value - 0.25) ** 2, rel=1e-3, abs=1e-3)
            assert pool.submit(bias_energy, xml, x, 0.25, 30.0).result() == pytest.approx(here, rel=1e-9)


def test_molecular_system_takes_a_learned_cv(alanine: MolecularSystem, pairs: PairDistances, alanine_map) -> None:
    """The agreement of mdtraj and OpenMM is its own check; a CV on coordinates is refused by it."""
    options = {
        "name": "alanine",
        "topology": alanine.topology,
        "system": alanine.system,
        "temperature_k": 300.0,
        "positions": alanine.positions + 1.0,
    }
    cv = diffusion_cv("psi1", alanine_map, 0, pairs, -10, 10)
    molecule = MolecularSystem(cvs=(cv,), **options)
    assert molecule.evaluate_cvs(alanine.positions[None]).shape == (1, 1)
    system, prefixes, groups = molecule.biased_system()
    context = reference_context(system)
    context.setParameter(f"{prefixes[0]}_force_constant", 50.0)
    value = molecule.evaluate_cvs(molecule.positions[None])[0, 0]
    assert energy(context, molecule.positions, ~groups & 0xFFFFFFFF) == pytest.approx(25 * value**2, rel=1e-3)
    module = LinearProjection(np.zeros(3), np.ones(3))
    with pytest.raises(InputError, match="both must give the same number"):
        MolecularSystem(cvs=(TorchCV("where", module, Coordinates((4,)), -50, 50),), **options)


def test_off_the_data_the_umbrella_has_no_force_and_says_so(
    alanine: MolecularSystem, alanine_conformations: np.ndarray, pairs: PairDistances, alanine_map
) -> None:
    """A stretched molecule: value below the range, force exactly 0, a warning by either route, once a simulation.

    Seen to fail with the support left out of the CV: the value is then that of the nearest landmark, in the range.
    """
    cv = diffusion_cv("psi1", alanine_map, 0, pairs)
    stretched = 3 * alanine_conformations[0]
    both = alanine.trajectory(np.stack([stretched, alanine_conformations[0]]))
    with pytest.warns(OffSupportWarning, match="psi1.*1 of 2 frames"):
        values = cv.evaluate(both)
    assert values[0] < cv.minimum <= values[1] <= cv.maximum
    assert cv.support(both).tolist() == [0.0, 1.0]
    context = reference_context(bias_system(cv, alanine.n_atoms))
    context.setParameter("sgm0_force_constant", 1000.0)
    with pytest.warns(OffSupportWarning, match="psi1.*simulation"):
        off = forces(context, stretched)
    assert (off == 0).all()
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        assert (forces(context, 2 * stretched) == 0).all()
        assert energy(context, stretched) == pytest.approx(500 * values[0] ** 2)
        assert np.abs(forces(context, alanine_conformations[0])).max() > 1


def test_forces_are_finite_and_the_energy_continuous_all_the_way_off_the_data(
    alanine: MolecularSystem, alanine_conformations: np.ndarray, pairs: PairDistances, alanine_map
) -> None:
    """Stretching from 1 to 2: the energy's change is the integral of the force, through the step and beyond.

    Seen to fail with the slope of the support left out.
    """
    cv = diffusion_cv("psi1", alanine_map, 0, pairs)
    context = reference_context(bias_system(cv, alanine.n_atoms))
    context.setParameter("sgm0_force_constant", 10.0)
    x = alanine_conformations[0]
    scales = np.linspace(1, 2, 2001)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OffSupportWarning)
        energies = np.array([energy(context, scale * x) for scale in scales])
        slopes = np.array([-(forces(context, scale * x) * x).sum() for scale in scales])
    assert np.isfinite(slopes).all()
    integral = ((slopes[1:] + slopes[:-1]) / 2 * np.diff(scales)).sum()
    assert integral == pytest.approx(energies[-1] - energies[0], rel=1e-3)
    assert abs(energies[-1] - energies[0]) > 1


def test_coordinates_bias_a_particle(moon: DiffusionMap) -> None:
    """A particle of a moon-shaped cloud in x and z; y has no force. Seen to fail with the axes sorted."""
    cv = diffusion_cv("along", moon, 0, Coordinates((1,), (2, 0)))
    context = reference_context(bias_system(cv, 2))
    context.setParameter("sgm0_force_constant", 7.0)
    u, v = moon.landmarks[5]
    x = np.array([[9.0, 9.0, 9.0], [v, 3.0, u]])
    psi = moon.eigenvectors[5, 0]
    assert moon.support(moon.landmarks[5:6]) == 1
    assert energy(context, x) == pytest.approx(3.5 * psi**2, rel=1e-3)
    _, gradient = cv.module.value_and_gradient(np.array([u, v]))
    assert forces(context, x)[1] == pytest.approx(-7.0 * psi * np.array([gradient[1], 0, gradient[0]]), rel=1e-3)
    assert (forces(context, x)[0] == 0).all()


def test_distilled_cv_stands_for_its_map_and_needs_no_python(
    alanine: MolecularSystem, alanine_conformations: np.ndarray, pairs: PairDistances, alanine_map
) -> None:
    """On configurations of neither fit nor hold-out too. Seen to fail with the scale not folded into the layer."""
    rng = np.random.default_rng(14)
    x = np.repeat(alanine_conformations, 20, axis=0)
    x = x + rng.normal(scale=0.007, size=x.shape)
    parent = diffusion_cv("psi1", alanine_map, 0, pairs, -4, 4, windows=7)
    found = distil(parent, pairs(torch.as_tensor(x[::2])).numpy(), hidden=6)
    assert found.r_squared > 0.95
    trajectory = alanine.trajectory(x[1::2])
    residual = found.cv.evaluate(trajectory) - parent.evaluate(trajectory)
    assert residual.var() < 0.05 * parent.evaluate(trajectory).var()
    assert (found.cv.name, found.cv.minimum, found.cv.windows) == ("psi1", -4, 7)
    for force in (found.cv.force(), found.cv.bias_force("sgm0")):
        assert "PythonForce" not in openmm.XmlSerializer.serialize(force)
    with pytest.raises(InputError, match="18 points or more"):
        distil(parent, alanine_map.landmarks[:10])


# Files and adaptors


@pytest.mark.parametrize("kind", KINDS)
def test_saved_cv_is_the_same_and_holds_no_pickle(
    kind: str, alanine: MolecularSystem, alanine_conformations: np.ndarray, pairs: PairDistances, alanine_map, tmp_path
) -> None:
    cv = every_cv(pairs, alanine_map)[kind]
    cv.windows, cv.force_constant = 9, 40.0
    cv.save(tmp_path / "cv")
    assert sorted(path.name for path in (tmp_path / "cv").iterdir()) == ["cv.json", "cv.safetensors"]
    loaded = TorchCV.load(tmp_path / "cv")
    trajectory = alanine.trajectory(alanine_conformations)
    assert (loaded.evaluate(trajectory) == cv.evaluate(trajectory)).all()
    for name in ("name", "atoms", "minimum", "maximum", "windows", "force_constant", "features"):
        assert getattr(loaded, name) == getattr(cv, name)


@pytest.mark.parametrize("name", ["cv.json", "cv.safetensors"])
def test_damaged_cv_is_refused(name: str, pairs: PairDistances, tmp_path: Path) -> None:
    n = pairs.n_features
    TorchCV("net", MLP((n, 3, 1)), pairs, 0, 1).save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    other = json.dumps({"module": {"kind": "MLP", "sizes": [n, 2, 1]}, "features": {}}).encode()
    for spoilt in (b"", b"{}", b"[]", b"null", whole[: len(whole) // 2], whole[1:], other):
        (tmp_path / name).write_bytes(spoilt)
        with pytest.raises(InputError, match=r"the learned CV in .* is damaged") as caught:
            TorchCV.load(tmp_path)
        assert len(str(caught.value).splitlines()) == 1


def test_what_cannot_be_saved_or_used_is_refused(pairs: PairDistances, tmp_path: Path) -> None:
    class Mine(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features.sum(dim=1)

    with pytest.raises(InputError, match="a Mine cannot be saved"):
        TorchCV("mine", Mine(), pairs, 0, 50).save(tmp_path)
    with pytest.raises(InputError, match=r"holds no learned CV"):
        TorchCV.load(tmp_path)
    with pytest.raises(InputError, match="fails on float64 features"):
        TorchCV("net", MLP((3, 1)), pairs, 0, 1)
    with pytest.raises(InputError, match="one float64 number"):
        TorchCV("net", torch.nn.Identity(), pairs, 0, 1)
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        TorchCV("net", np.sum, pairs, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="activation"):
        MLP((3, 1), "relu")
    with pytest.raises(InputError, match="each pair once"):
        PairDistances(((1, 2), (2, 1)))
    with pytest.raises(InputError, match="axes"):
        Coordinates((0,), (3,))


@pytest.mark.parametrize("features", [PairDistances(((3, 1), (1, 7))), Coordinates((4, 2), (1, 0))])
def test_features_in_numpy_are_those_in_torch(features: Features) -> None:
    """And as many as said, from JSON too, with pulled-back gradients those of autograd."""
    again = Features.from_dict(features.to_dict())
    assert again == features
    x = torch.tensor(np.random.default_rng(12).normal(size=(1, 9, 3)), requires_grad=True)
    values = features(x)
    assert values.shape == (1, features.n_features)
    rows = features.matrix() @ x.detach().numpy()[0, list(features.atoms)]
    assert features.of_rows(rows) == pytest.approx(values[0].detach().numpy())
    weights = np.arange(1.0, features.n_features + 1)
    (expected,) = torch.autograd.grad(values @ torch.tensor(weights), x, torch.ones(1))
    pulled = features.matrix().T @ features.pull_back(rows, features.of_rows(rows), weights)
    assert pulled == pytest.approx(expected[0, list(features.atoms)].numpy())


def test_tica_finds_the_slow_direction() -> None:
    """Two independent autoregressive processes, mixed: the first component is the slow one, within its errors."""
    pytest.importorskip("deeptime", reason="the extra 'tica' is not installed")
    rng = np.random.default_rng(13)
    noise, hidden = rng.normal(size=(20000, 2)), np.zeros((20000, 2))
    for t in range(1, len(hidden)):
        hidden[t] = hidden[t - 1] * [0.99, 0.5] + noise[t] * np.sqrt(1 - np.array([0.99, 0.5]) ** 2)
    module = tica_component([hidden @ np.array([[1.0, 2.0], [1.0, -1.0]]) + 3.0], lag=5)
    found = module(torch.as_tensor(hidden @ np.array([[1.0, 2.0], [1.0, -1.0]]) + 3.0)).numpy()
    # The slow process has 20000 · 0.01 / 1.99 = 100 independent values.
    assert abs(np.corrcoef(found, hidden[:, 0])[0, 1]) > 0.98
