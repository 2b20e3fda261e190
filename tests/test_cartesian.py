"""Cartesian coordinates of tied particles: the map and back, its volume, the gradients, and what may be tied."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import numpy as np
import openmm
import pytest
import torch
from conftest import REPOSITORY, reference_context
from fast_slow import SYSTEMS, FastSlow, fast_of, half_moon, s_shape
from openmm import app, unit

from openmm_sgm.cartesian import CartesianRepresentation, fit_cartesian
from openmm_sgm.cvs import Position
from openmm_sgm.generator import Generator
from openmm_sgm.labels import LabelSpace
from openmm_sgm.networks import NetworkOptions, ScoreNetwork
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import InputError, thermal_energy

KT = thermal_energy(300.0)
STIFFNESS = np.array([[50.0, 20.0, 0.0], [20.0, 80.0, 0.0], [0.0, 0.0, 30.0]])
COLD = LabelSpace((None,), (-1.0,), (1.0,))
THERMAL = LabelSpace((None, None), (-1.0, 0.0), (1.0, 0.7), True)


def tied(expression: str = "x^2+y^2+z^2", n: int = 1) -> tuple[app.Topology, openmm.System]:
    system, force = openmm.System(), openmm.CustomExternalForce(expression)
    topology = app.Topology()
    residue = topology.addResidue("PAR", topology.addChain())
    for k in range(n):
        force.addParticle(system.addParticle(10.0), [])
        topology.addAtom(f"A{k}", app.element.argon, residue)
    system.addForce(force)
    return topology, system


def fitted(space: LabelSpace, n: int = 4000) -> tuple[CartesianRepresentation, torch.Tensor, torch.Tensor]:
    """Return a representation of a Gaussian whose mean depends on the label, with the data it was fitted to."""
    rng = np.random.default_rng(1)
    labels = rng.uniform(-1, 1, (n, 1))
    if space.thermal:
        labels = np.hstack([labels, rng.uniform(0, 0.7, (n, 1))])
    noise = rng.multivariate_normal(np.zeros(3), KT * np.linalg.inv(STIFFNESS), n)
    noise *= space.spread(torch.as_tensor(labels)).numpy()
    positions = (noise + np.stack([labels[:, 0], labels[:, 0] ** 2, 0 * labels[:, 0]], axis=1))[:, None]
    return fit_cartesian(positions, labels, space), torch.as_tensor(positions), torch.as_tensor(labels)


@pytest.mark.parametrize("space", [COLD, THERMAL], ids=["one temperature", "ladder"])
def test_there_and_back_with_the_volume_of_the_map(space: LabelSpace) -> None:
    representation, x, labels = fitted(space)
    z, log_volume = representation.encode(x, labels)
    back, same, valid = representation.decode(z, labels)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(same, log_volume)
    assert valid.all()
    jacobian = torch.autograd.functional.jacobian(lambda v: representation.decode(v, labels[:1])[0].ravel(), z[:1])
    expected = torch.linalg.slogdet(jacobian.reshape(3, 3))[1]
    torch.testing.assert_close(log_volume[0], expected)
    assert (z.mean(0).abs() < 0.1).all()
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3, dtype=z.dtype), atol=0.15, rtol=0)


def test_forces_give_the_score_in_these_coordinates() -> None:
    """Of a Gaussian both are known in closed form. Seen to fail without the mixing's transpose."""
    representation, x, labels = fitted(COLD)
    mean = torch.stack([labels[:, 0], labels[:, 0] ** 2, 0 * labels[:, 0]], dim=1)
    stiffness = torch.as_tensor(STIFFNESS)
    forces = -((x[:, 0] - mean) @ stiffness)[:, None]
    z, gradient = representation.force_targets(x, forces, labels, 1 / KT, np.zeros(0))
    z = z.requires_grad_(True)
    offset = representation.decode(z, labels)[0][:, 0] - mean
    log_density = -0.5 / KT * (offset @ stiffness * offset).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(log_density, z)[0])


def test_a_generator_of_it_is_saved_and_read_back() -> None:
    representation, x, labels = fitted(COLD)
    torch.manual_seed(3)
    network = ScoreNetwork(3, 0, COLD.features(labels[:1]).shape[1] - 1, NetworkOptions(16, 16, 16))
    generator = Generator(representation, network.requires_grad_(False), 4)
    tensors, header = generator.to_bytes()
    assert json.loads(header)["representation"] == "cartesian"
    again = Generator.from_bytes(tensors, header)
    assert again.representation.has_coordinates_of(representation)
    some, at = x[:5].numpy(), labels[:5].numpy()
    np.testing.assert_array_equal(again.log_density(some, at), generator.log_density(some, at))


def test_a_position_is_refused_in_free_space(alanine: MolecularSystem) -> None:
    with pytest.raises(InputError, match="CV 'x' is a position, which a molecule in free space does not keep"):
        MolecularSystem(
            "free", alanine.topology, alanine.system, alanine.positions, (Position("x", (0,), "x", -1, 1),), 300.0
        )
    with pytest.raises(InputError, match="axis must be 'x', 'y' or 'z'"):
        Position("x", (0,), "w", -1, 1)  # type: ignore[arg-type]


def _constrained(system: openmm.System) -> None:
    system.addConstraint(0, 1, 0.1)


def _virtual(system: openmm.System) -> None:
    system.setParticleMass(1, 0.0)
    system.setVirtualSite(1, openmm.TwoParticleAverageSite(0, 0, 0.5, 0.5))


def _frozen(system: openmm.System) -> None:
    system.setParticleMass(1, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_constrained, "where constraints cannot be kept: build the system without constraints"),
        (_virtual, "where virtual sites cannot be kept"),
        (
            lambda system: system.addForce(openmm.CMMotionRemover()),
            "where a CMMotionRemover cannot be kept",
        ),
        (_frozen, "particle 1 has no mass"),
    ],
)
def test_what_cannot_be_sampled_in_cartesian_coordinates_is_refused(
    change: Callable[[openmm.System], object], message: str
) -> None:
    topology, system = tied(n=2)
    positions, cvs = np.array([[0.0, 0, 0], [0.1, 0, 0]]), (Position("x", (0,), "x", -1, 1),)
    MolecularSystem("tied", topology, system, positions, cvs, 300.0)  # as it is, it is taken
    changed = copy.deepcopy(system)
    change(changed)
    with pytest.raises(InputError, match=message):
        MolecularSystem("tied", topology, changed, positions, cvs, 300.0)


def test_a_tied_system_is_not_centred() -> None:
    topology, system = tied(n=2)
    molecule = MolecularSystem(
        "tied", topology, system, np.array([[0.3, 0, 0], [0.1, 0, 0]]), (Position("x", (0,), "x", -1, 1),), 300.0
    )
    assert molecule.evaluate_cvs(molecule.positions[None])[0, 0] == pytest.approx(0.3)


@pytest.mark.parametrize("fast_slow", SYSTEMS, ids=lambda s: s.name)
def test_closed_forms_are_of_the_potential_that_openmm_has(fast_slow: FastSlow) -> None:
    """Energies at random points: OpenMM's own expressions in system.xml against the numpy ones, maps included."""
    system = openmm.XmlSerializer.deserialize((REPOSITORY / "systems" / fast_slow.name / "system.xml").read_text())
    context = reference_context(system)
    rng, n = np.random.default_rng(5), system.getNumParticles()
    for _ in range(20):
        slow, fast = rng.uniform(-0.8, 0.8, 2)
        if fast_slow.name == "three_atoms":
            slow, fast = rng.uniform(1.3, 2.7), rng.uniform(0.12, 0.18)
            positions = [[fast, 0, 0], [0, 0, 0], [0.15 * np.cos(slow), 0.15 * np.sin(slow), 0]]
            volume = KT * np.log(fast**2 * np.sin(slow))
        elif fast_slow.name in ("half_moon", "s_shape"):
            x, y = (half_moon if fast_slow.name == "half_moon" else s_shape)(slow, fast)
            positions, volume = [[x, y, 0]], KT * np.log(np.hypot(x, y)) if fast_slow.name == "half_moon" else 0.0
            assert fast_of(fast_slow.name, np.array([positions])) == pytest.approx(fast)
        else:
            positions, volume = [[slow, fast, 0]] if n == 1 else [[slow, 0, 0], [0, fast, 0]], 0.0
        context.setPositions(positions * unit.nanometer)
        energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        assert energy == pytest.approx(fast_slow.potential(np.array(slow), np.array(fast)) + volume, rel=1e-6)
