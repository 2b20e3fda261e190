"""Encode and decode, the volume element, the constraint factor, and the gradients that train the score."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import openmm
import pytest
import torch
from analytic import ANGLE_RAD, TEMPERATURE_K, triatomic
from conftest import reference_context
from scipy.integrate import quad

from openmm_sgm.cvs import Angle, Torsion
from openmm_sgm.representation import ROTOR_SCALE, Representation, fit_representation
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import thermal_energy
from openmm_sgm.windows import WindowGrid
from openmm_sgm.zmatrix import build_z_matrix, internal_coordinates, log_volume_element, out_of_reach, place_atoms

Case = tuple[MolecularSystem, Representation, np.ndarray, np.ndarray]


def shaken(molecule: MolecularSystem, n: int, seed: int) -> np.ndarray:
    """Return hot molecular dynamics of a molecule, shape (n, n_atoms, 3), nm: conformations of every kind."""
    system = openmm.XmlSerializer.deserialize(molecule.physical_xml)
    integrator = openmm.LangevinMiddleIntegrator(900.0, 5.0, 0.001)
    integrator.setRandomNumberSeed(seed)
    integrator.setConstraintTolerance(1e-10)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(molecule.positions)
    context.applyConstraints(1e-10)
    context.setVelocitiesToTemperature(900.0, seed)
    result = []
    for _ in range(n):
        integrator.step(100)
        result.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
    return np.array(result)


LADDER = (TEMPERATURE_K, 450.0, 600.0)


def grid_of(molecule: MolecularSystem) -> WindowGrid:
    """Return the default grid; of a molecule at a higher temperature, one level of a ladder."""
    hot = molecule.temperature_k > TEMPERATURE_K
    return WindowGrid.over(molecule.cvs, molecule.temperature_k, LADDER if hot else ())


def fitted(
    molecule: MolecularSystem, positions: np.ndarray, rng: np.random.Generator
) -> tuple[Representation, np.ndarray]:
    """Return a representation fitted to positions, with labels near their CVs."""
    grid = grid_of(molecule)
    cvs = molecule.evaluate_cvs(positions)
    widths = [0.1 if cv.period else 0.001 for cv in molecule.cvs]
    labels = grid.labels(grid.difference(cvs + widths * rng.standard_normal(cvs.shape), np.zeros_like(cvs)))
    torsions = [cv.atoms if isinstance(cv, Torsion) else None for cv in molecule.cvs]
    z_matrix = build_z_matrix(molecule.n_atoms, molecule.bonds, molecule.masses, molecule.constraints, torsions)
    representation = fit_representation(
        positions,
        labels,
        np.ones(len(positions)),
        z_matrix=z_matrix,
        label_space=grid.label_space,
        constraints=molecule.constraints,
        masses=molecule.masses,
    )
    return representation, labels


@pytest.fixture(scope="module", params=["alanine", "proline", "hot alanine"])
def case(request: pytest.FixtureRequest) -> Case:
    """A molecule (proline has a ring, one is on a temperature ladder), its representation, hot conformations, labels.

    The last one's labels are of all its temperatures. Broken on purpose: without √(T/T₀) in the volume element the test
    of the determinant fails for it, without it in `decode` the round trip.
    """
    molecule: MolecularSystem = request.getfixturevalue(request.param.removeprefix("hot "))
    if request.param.startswith("hot"):
        molecule = replace(molecule, temperature_k=LADDER[1])
    positions = shaken(molecule, 200, seed=3)
    rng = np.random.default_rng(1)
    representation, labels = fitted(molecule, positions, rng)
    if request.param.startswith("hot"):
        labels[:, -1] = np.log(rng.choice(LADDER, len(labels)) / TEMPERATURE_K)
    return molecule, representation, positions, labels


def distances(positions: np.ndarray) -> np.ndarray:
    return np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)


def handedness(positions: np.ndarray) -> np.ndarray:
    """Signs of the volumes of all quadruples of consecutive atoms; a mirror image has the opposite ones."""
    a, b, c, d = positions[:, :-3], positions[:, 1:-2], positions[:, 2:-1], positions[:, 3:]
    return np.sign((np.cross(b - a, c - a) * (d - a)).sum(-1))


def test_round_trip_returns_the_same_configuration_up_to_a_rigid_motion(case: Case) -> None:
    _, representation, positions, labels = case
    x, c = torch.as_tensor(positions), torch.as_tensor(labels)
    z, log_volume = representation.encode(x, c)
    again, log_volume_again, valid = representation.decode(z, c)
    assert valid.all()
    np.testing.assert_allclose(distances(again.numpy()), distances(positions), atol=1e-8)
    np.testing.assert_array_equal(handedness(again.numpy()), handedness(positions))
    np.testing.assert_allclose(log_volume_again, log_volume, atol=1e-8)
    z_again, _ = representation.encode(again, c)
    turn = 2 * math.pi / ROTOR_SCALE
    difference = (z_again - z).numpy()
    rotors = difference[:, representation.n_linear :]
    np.testing.assert_allclose(difference[:, : representation.n_linear], 0, atol=1e-6)
    np.testing.assert_allclose(rotors - turn * np.round(rotors / turn), 0, atol=1e-6)


def log_determinant(representation: Representation, z: torch.Tensor, label: torch.Tensor) -> float:
    """Return log |∂x/∂(z, rotation, translation, constrained bonds)| of one configuration, by autograd.

    With the first atom at the origin, rigid motions add the columns e_k (translations) and e_k × x (rotations); a
    constrained bond adds the column of its own stretching.
    """
    z_matrix = representation.z_matrix
    fixed = np.flatnonzero(np.isfinite(z_matrix.constant_bonds[1:]))

    def positions(z_row: torch.Tensor, stretch: torch.Tensor) -> torch.Tensor:
        constant = z_matrix.constant_bonds.copy()
        constant[fixed + 1] = np.nan  # all bonds are coordinates here; the order of `decode` is bonds, angles, torsions
        n_free = len(constant) - 1 - len(fixed)
        mean = representation._raw_mean(label)[0]
        widths = torch.exp(0.5 * label[0, -1]) if representation.label_space.thermal else 1.0
        offsets = z_row[: representation.n_linear] @ torch.as_tensor(representation.mixing)
        raw = mean + offsets * torch.cat(
            [widths * offsets.new_ones(len(offsets) - len(representation.cv)), offsets.new_ones(len(representation.cv))]
        )
        bonds = torch.zeros(len(constant) - 1, dtype=torch.float64)
        free = np.setdiff1d(np.arange(len(constant) - 1), fixed)
        bonds = bonds.index_put((torch.as_tensor(free),), raw[:n_free])
        bonds = bonds.index_put((torch.as_tensor(fixed),), stretch)
        every = replace(
            representation,
            z_matrix=replace(z_matrix, constant_bonds=constant),
            coefficients=np.zeros((representation.coefficients.shape[0], len(raw) + len(fixed))),
            mixing=np.eye(len(raw) + len(fixed)),
            unmixing=np.eye(len(raw) + len(fixed)),
        )
        at_target = label.clone()
        if representation.label_space.thermal:
            at_target[:, -1] = 0.0
        x, _, _ = every.decode(torch.cat([bonds, raw[n_free:], z_row[representation.n_linear :]])[None], at_target)
        return x[0].flatten()

    stretch = torch.as_tensor(z_matrix.constant_bonds[fixed + 1])
    by_z, by_stretch = torch.autograd.functional.jacobian(positions, (z, stretch))
    x = positions(z, stretch).reshape(-1, 3)
    columns = [by_z, by_stretch]
    for axis in torch.eye(3, dtype=torch.float64):
        columns.append(axis.repeat(len(x))[:, None])
        columns.append(torch.linalg.cross(axis.expand_as(x), x).flatten()[:, None])
    return float(torch.linalg.slogdet(torch.cat(columns, dim=1))[1])


def test_volume_element_is_the_determinant_of_the_map(case: Case) -> None:
    """Broken on purpose: without the sines of the angles, or without r² of the bonds, the comparison fails."""
    _, representation, positions, labels = case
    x, c = torch.as_tensor(positions[::20]), torch.as_tensor(labels[::20])
    z, log_volume = representation.encode(x, c)
    exact = np.array([log_determinant(representation, z[k], c[k : k + 1]) for k in range(len(x))])
    difference = log_volume.numpy() - exact
    np.testing.assert_allclose(difference, difference[0], atol=1e-7)  # constrained bonds are a constant
    bonds, angles = _bonds_and_angles(representation, x)
    for broken in (2 * torch.log(bonds).sum(1), torch.log(torch.sin(angles)).sum(1)):
        off = difference - broken.numpy()
        assert np.ptp(off) > 1e-3


def test_the_volume_element_knows_how_a_ring_is_closed(proline: MolecularSystem) -> None:
    """Broken on purpose: with b² sin θ for the closing atom as for the others, the comparison fails."""
    z = build_z_matrix(proline.n_atoms, proline.bonds, proline.masses, (), [None, None])
    assert z.closing.sum() == 1
    rng = np.random.default_rng(4)
    x = torch.as_tensor(proline.positions + rng.normal(scale=0.004, size=(4, proline.n_atoms, 3)))
    bonds, angles, torsions = internal_coordinates(x, z)
    sizes = [bonds.shape[1], angles.shape[1], torsions.shape[1]]

    def positions(q: torch.Tensor) -> torch.Tensor:
        return place_atoms(*(part[None] for part in q.split(sizes)), z, proline.n_atoms)[0].flatten()

    exact = []
    for row in torch.cat([bonds, angles, torsions], dim=1):
        columns = [torch.autograd.functional.jacobian(positions, row)]
        placed = positions(row).reshape(-1, 3)
        for axis in torch.eye(3, dtype=torch.float64):
            columns.append(axis.repeat(len(placed))[:, None])
            columns.append(torch.linalg.cross(axis.expand_as(placed), placed).flatten()[:, None])
        exact.append(float(torch.linalg.slogdet(torch.cat(columns, dim=1))[1]))
    difference = log_volume_element(bonds, angles, x, z).numpy() - np.array(exact)
    np.testing.assert_allclose(difference, difference[0], atol=1e-7)
    along_a_chain = replace(z, closing=np.zeros_like(z.closing))
    wrong = log_volume_element(*internal_coordinates(x, along_a_chain)[:2], x, along_a_chain).numpy() - np.array(exact)
    assert np.ptp(wrong) > 1e-2


def test_a_ring_that_cannot_be_closed_is_no_configuration(proline: MolecularSystem) -> None:
    z = build_z_matrix(proline.n_atoms, proline.bonds, proline.masses, (), [None, None])
    x = torch.as_tensor(proline.positions[None])
    bonds, angles, torsions = internal_coordinates(x, z)
    column = int(np.flatnonzero(z.closing[2:])[0])
    for length in (0.02, 0.9):
        wrong = angles.clone()
        wrong[:, column] = length
        assert out_of_reach(bonds, wrong, place_atoms(bonds, wrong, torsions, z, proline.n_atoms), z).all()
    assert not out_of_reach(bonds, angles, x, z).any()


def _bonds_and_angles(representation: Representation, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order, references = representation.z_matrix.order, representation.z_matrix.references
    arms = x[:, order[1:]] - x[:, references[1:, 0]]
    others = x[:, references[2:, 1]] - x[:, references[2:, 0]]
    cosine = (arms[:, 1:] * others).sum(-1) / (arms[:, 1:].norm(dim=-1) * others.norm(dim=-1))
    return arms.norm(dim=-1), torch.arccos(cosine)


def test_classes_of_torsions(alanine: MolecularSystem) -> None:
    """φ and ψ are offsets from the label, the three methyls rotors, peptide bonds and siblings unimodal."""
    representation, _ = fitted(alanine, shaken(alanine, 300, seed=5), np.random.default_rng(0))
    assert representation.n_rotors == 3
    assert sorted(representation.cv_of.tolist()) == [0, 1]
    assert len(representation.unimodal) == 19 - 3 - 2
    assert representation.n_linear + representation.n_rotors == 48


def test_constraint_factor_is_that_of_the_gradients(alanine: MolecularSystem) -> None:
    """½ log det Z against Z built from numerical gradients of every constraint (Fixman 1974)."""
    positions = shaken(alanine, 4, seed=8)
    representation, _ = fitted(alanine, shaken(alanine, 100, seed=3), np.random.default_rng(1))
    expected = []
    for x in positions:
        gradients = np.zeros((len(alanine.constraints), x.size))
        for k, (i, j, _) in enumerate(alanine.constraints):
            for a in range(x.size):
                step = np.zeros(x.size)
                step[a] = 1e-6
                up, down = ((x.ravel() + s * step).reshape(x.shape) for s in (1, -1))
                gradients[k, a] = (np.linalg.norm(up[i] - up[j]) - np.linalg.norm(down[i] - down[j])) / 2e-6
        z = gradients @ np.diag(np.repeat(1 / alanine.masses, 3)) @ gradients.T
        expected.append(0.5 * np.linalg.slogdet(z)[1])
    factor = representation.log_constraint_factor(torch.as_tensor(positions)).numpy()
    np.testing.assert_allclose(factor, expected, atol=1e-6)


@pytest.mark.slow
def test_constrained_dynamics_samples_what_the_constraint_factor_says() -> None:
    """OpenMM's constrained dynamics of a light atom between two heavy ones, against sin θ exp(−βU) |Z|^½.

    Broken on purpose: without |Z|^½, or with its inverse, the mean cosine is off by many standard errors.
    """
    molecule = triatomic(
        masses=(16.0, 2.0, 16.0), constrained=True, angle_constant=100.0, cvs=(Angle("theta", (0, 1, 2), 0.8, 3.0),)
    )
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 20.0, 0.0005)
    integrator.setConstraintTolerance(1e-8)
    integrator.setRandomNumberSeed(4)
    context = openmm.Context(molecule.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(TEMPERATURE_K, 4)
    integrator.step(2000)
    cosines = np.empty(60_000)
    for k in range(len(cosines)):
        integrator.step(50)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value
        u, v = x[0] - x[1], x[2] - x[1]
        cosines[k] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    blocks = cosines.reshape(50, -1).mean(axis=1)
    mean, error = blocks.mean(), blocks.std(ddof=1) / np.sqrt(len(blocks))

    beta = 1 / thermal_energy(TEMPERATURE_K)
    representation, _ = fitted(molecule, shaken(molecule, 50, seed=2), np.random.default_rng(0))

    def density(theta: float, power: float) -> float:
        x = np.array([[[np.sin(theta), np.cos(theta), 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        factor = float(representation.log_constraint_factor(torch.as_tensor(x))[0])
        energy = 0.5 * 100.0 * (theta - ANGLE_RAD) ** 2
        return float(np.sin(theta) * np.exp(-beta * energy + power * factor))

    def expected(power: float) -> float:
        norm = quad(density, 0, np.pi, args=(power,))[0]
        return float(quad(lambda t: np.cos(t) * density(t, power), 0, np.pi)[0] / norm)

    assert abs(mean - expected(1.0)) < 4 * error
    assert abs(mean - expected(0.0)) > 6 * error
    assert abs(mean - expected(-1.0)) > 6 * error


def test_force_targets_are_the_gradient_of_the_log_density(case: Case) -> None:
    """∇_z log π_c against central differences of −βU − β bias + ½ log|Z| + log|dx/dz|, from energies alone."""
    molecule, representation, positions, labels = case
    rows = slice(0, 60, 20)
    x, c = torch.as_tensor(positions[rows]), torch.as_tensor(labels[rows])
    context = reference_context(molecule.system)
    beta = 1 / thermal_energy(molecule.temperature_k)
    grid = grid_of(molecule)

    def log_density(z: torch.Tensor) -> np.ndarray:
        decoded, log_volume, _ = representation.decode(z, c)
        energies = []
        for configuration in decoded.numpy():
            context.setPositions(configuration)
            energies.append(context.getState(energy=True).getPotentialEnergy()._value)
        bias = grid.reduced_bias(exact_cvs(molecule, decoded.numpy()), labels[rows])
        factor = representation.log_constraint_factor(decoded)
        return -beta * np.array(energies) - bias + (factor + log_volume).numpy()

    forces = []
    for configuration in positions[rows]:
        context.setPositions(configuration)
        forces.append(context.getState(forces=True).getForces(asNumpy=True)._value)
    forces = np.array(forces)
    in_coordinates = set(representation.cv_of.tolist())
    others = [k for k in range(len(molecule.cvs)) if k not in in_coordinates]
    if others:
        slopes = grid.force_constants * grid.difference(
            molecule.evaluate_cvs(positions[rows]), labels[rows, : len(molecule.cvs)]
        )
        forces -= np.einsum("nk,nkai->nai", slopes[:, others], molecule.cv_gradients(positions[rows], others))
    constants = grid.force_constants[representation.cv_of]
    z, gradients = representation.force_targets(x, torch.as_tensor(forces), c, beta, constants)
    for k in range(z.shape[1]):
        step = torch.zeros_like(z)
        step[:, k] = 1e-4
        numerical = (log_density(z + step) - log_density(z - step)) / 2e-4
        np.testing.assert_allclose(gradients[:, k].numpy(), numerical, rtol=2e-3, atol=2e-2)


def exact_cvs(molecule: MolecularSystem, positions: np.ndarray) -> np.ndarray:
    """CVs in double precision, from their OpenMM forces; mdtraj's single precision would drown the differences."""
    context = molecule._cv_context()
    values = np.empty((len(positions), len(molecule.cvs)))
    for row, configuration in enumerate(positions):
        context.setPositions(configuration)
        for k in range(len(molecule.cvs)):
            values[row, k] = context.getState(energy=True, groups={k}).getPotentialEnergy()._value
    return values


def test_arrays_rebuild_the_representation(case: Case) -> None:
    _, representation, positions, labels = case
    again = Representation.from_arrays(representation.to_arrays(), representation.label_space, representation.n_atoms)
    x, c = torch.as_tensor(positions[:5]), torch.as_tensor(labels[:5])
    for ours, theirs in zip(representation.encode(x, c), again.encode(x, c), strict=True):
        assert torch.equal(ours, theirs)


def test_rows_that_are_no_configuration_are_marked(case: Case) -> None:
    _, representation, positions, labels = case
    x, c = torch.as_tensor(positions[:1]), torch.as_tensor(labels[:1])
    z, _ = representation.encode(x, c)
    far = z.clone()
    far[:, : representation.n_linear] += 1000
    assert representation.decode(z, c)[2].all()
    assert not representation.decode(far, c)[2].any()
