"""Where libraries do what one would not expect, the package is right all the same; see docs/surprises.md."""

from __future__ import annotations

import itertools
import sys
import types
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pymbar
import pytest
import torch
from openmm import app

import openmm_sgm as sgm
from openmm_sgm.cells import CellGrid
from openmm_sgm.cv_functions import MLP, tica_component
from openmm_sgm.features import PairDistances
from openmm_sgm.frames import MD, Frames
from openmm_sgm.geometry import compare_geometry
from openmm_sgm.hidden import observables_of
from openmm_sgm.learned import TorchCV
from openmm_sgm.mbar import settled_from, statistical_inefficiencies
from openmm_sgm.reporter import FrameReporter, load_frames
from openmm_sgm.system import MolecularSystem, check_supported
from openmm_sgm.transitions import estimate_transitions
from openmm_sgm.units import InputError
from openmm_sgm.windows import WindowGrid

TRANS = np.array([[0.0, 0.15, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.15, -0.15, 0.0]])
"""Four atoms of a chain in a plane, nm: their torsion is π in exact arithmetic."""


def chain(n_atoms: int, bonded: list[tuple[int, int]] | None = None) -> app.Topology:
    """Return carbons with the bonds given, or each bonded to the next."""
    topology = app.Topology()
    residue = topology.addResidue("CHN", topology.addChain())
    atoms = [topology.addAtom(f"C{i + 1}", app.element.carbon, residue) for i in range(n_atoms)]
    for i, j in bonded or list(itertools.pairwise(range(n_atoms))):
        topology.addBond(atoms[i], atoms[j])
    return topology


def free_system(n_atoms: int) -> openmm.System:
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(12.0)
    return system


def frames_of(positions: np.ndarray, energies: np.ndarray, cvs: np.ndarray) -> Frames:
    n = len(positions)
    return Frames(
        positions=positions,
        forces=np.zeros_like(positions),
        energies=energies,
        cvs=cvs,
        labels=np.zeros((n, cvs.shape[1])),
        windows=np.zeros(n, dtype=np.int64),
        log_weights=np.zeros(n),
        source=np.full(n, MD, dtype=np.int8),
    )


# mdtraj


def test_a_torsion_of_exactly_pi_is_counted() -> None:
    """mdtraj returns 3.14159274 for it, which is above π and falls out of any histogram over [−π, π]."""
    topology = chain(4)
    raw = mdtraj.compute_dihedrals(mdtraj.Trajectory(TRANS, mdtraj.Topology.from_openmm(topology)), [[0, 1, 2, 3]])
    assert float(raw[0, 0]) > np.pi
    torsion = sgm.Torsion("omega", (0, 1, 2, 3))
    molecule = MolecularSystem("trans", topology, free_system(4), TRANS, (torsion,), 300.0)
    frames = frames_of(np.repeat(TRANS[None], 5, axis=0), np.zeros(5), np.full((5, 1), np.pi))
    histograms = compare_geometry(molecule, frames, frames)["geometry_histograms"]
    np.testing.assert_allclose(histograms.sum(axis=-1) * 2 * np.pi / histograms.shape[-1], 1)
    (observed,) = observables_of(molecule.trajectory(np.stack([TRANS, TRANS * [1, 1, -1]])))
    assert np.ptp(np.mod(observed.values, 2 * np.pi)) < 1e-6


def test_a_bias_that_moves_its_trajectory_moves_no_other_s() -> None:
    """`mdtraj.rmsd` centres what it is given in place; a user's trajectories, and the next bias, must not notice."""
    rng = np.random.default_rng(3)
    topology = mdtraj.Topology.from_openmm(chain(5))
    still = rng.normal(scale=0.2, size=(5, 3))
    parts = [mdtraj.Trajectory(still + 3.0 + rng.normal(scale=0.02, size=(400, 5, 3)), topology) for _ in range(2)]
    reference = mdtraj.Trajectory(still, topology)
    before = [part.xyz.copy() for part in parts]
    seen = []

    def by_rmsd(trajectory: mdtraj.Trajectory) -> np.ndarray:
        return 10 * mdtraj.rmsd(trajectory, reference).astype(float)

    def by_place(trajectory: mdtraj.Trajectory) -> np.ndarray:
        seen.append(trajectory.xyz.mean())
        return np.zeros(trajectory.n_frames)

    sgm.hidden_states_in_trajectories(parts, [by_rmsd, by_place], 300.0)
    for part, was in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part.xyz, was)
    np.testing.assert_allclose(seen, 3.0, atol=0.5)


# pymbar


def test_a_constant_series_adds_no_correlation() -> None:
    """pymbar takes 100 times 0.1, whose mean is rounded, for a series that never decorrelates."""
    assert pymbar.timeseries.statistical_inefficiency(np.full(100, 0.1)) > 99
    assert pymbar.timeseries.detect_equilibration(np.full(100, 0.1))[0] > 90
    rng = np.random.default_rng(5)
    grid = WindowGrid((np.array([0.0]),), np.array([1.0]), (None,), 300.0)
    chain_of_one = frames_of(np.zeros((100, 1, 3)), rng.normal(size=100), np.full((100, 1), 0.1))
    assert statistical_inefficiencies(chain_of_one, grid)[0] < 5
    assert settled_from(chain_of_one, grid).sum() > 60


# OpenMM


def test_a_force_that_joins_molecules_for_openmm_does_not_bond_them() -> None:
    """OpenMM counts the groups of a CustomCentroidBondForce, and of one inside a CustomCVForce, as one molecule."""
    system, topology = free_system(4), chain(4, [(0, 1), (2, 3)])
    centroids = openmm.CustomCentroidBondForce(2, "distance(g1, g2)")
    groups = [centroids.addGroup([0, 1]), centroids.addGroup([2, 3])]
    centroids.addBond(groups, [])
    bias = openmm.CustomCVForce("d")
    bias.addCollectiveVariable("d", centroids)
    system.addForce(bias)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    assert len(context.getMolecules()) == 1
    with pytest.raises(InputError, match="the atoms form 2 pieces"):
        check_supported(topology, system, (sgm.Distance("r", (0, 1), minimum=0.1, maximum=0.3),), np.eye(4, 3))


def test_a_learned_cv_stays_what_it_was_when_its_network_is_trained_further() -> None:
    """OpenMM pickles a PythonForce that enters a CustomCVForce: the bias would stay behind while the values go on."""
    features = PairDistances(((0, 1), (1, 2), (2, 3)))
    network = MLP((3, 4, 4, 1))  # two hidden layers: no OpenMM force stands for it
    cv = TorchCV("s", network, features, -5.0, 5.0, windows=4, force_constant=10.0)
    molecule = MolecularSystem("learned", chain(4), free_system(4), TRANS, (cv,), 300.0)
    value = molecule.evaluate_cvs(TRANS[None])[0, 0]
    with torch.no_grad():
        for weights in network.parameters():
            weights += 0.5
    assert molecule.evaluate_cvs(TRANS[None])[0, 0] == value
    system, (prefix,), _ = molecule.biased_system()
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(TRANS)
    context.setParameter(f"{prefix}_center", value + 0.2)
    context.setParameter(f"{prefix}_force_constant", 10.0)
    energy = context.getState(energy=True).getPotentialEnergy()._value
    assert energy == pytest.approx(0.5 * 10 * 0.2**2, rel=1e-4)


def test_a_learned_cv_does_not_drop_out() -> None:
    """A module that is still in training mode is a random function of the configuration."""

    class Dropping(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(features, 0.5, self.training).sum(dim=1)

    cv = TorchCV("s", Dropping(), PairDistances(tuple(itertools.combinations(range(4), 2))), -5.0, 5.0)
    trajectory = mdtraj.Trajectory(np.repeat(TRANS[None], 20, axis=0), mdtraj.Topology.from_openmm(chain(4)))
    assert np.ptp(cv.evaluate(trajectory)) == 0


def test_frames_recorded_after_a_state_is_loaded_go_on_in_time(tmp_path: Path) -> None:
    """OpenMM's trajectory files begin at time 0 again then; `FrameReporter` keeps the simulation's own step count."""

    def simulation() -> app.Simulation:
        system = free_system(2)
        bond = openmm.HarmonicBondForce()
        bond.addBond(0, 1, 0.15, 1e4)
        system.addForce(bond)
        integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.002)
        platform = openmm.Platform.getPlatformByName("Reference")
        made = app.Simulation(chain(2), system, integrator, platform)
        made.context.setPositions([[0, 0, 0], [0.15, 0, 0]])
        made.context.setVelocitiesToTemperature(300.0, 1)
        distance = sgm.Distance("r", (0, 1), minimum=0.1, maximum=0.3)
        made.reporters.append(FrameReporter(tmp_path / "frames", 20, (distance,)))
        return made

    first = simulation()
    first.step(40)
    first.saveState(str(tmp_path / "state.xml"))
    first.reporters.pop().close()
    second = simulation()
    second.loadState(str(tmp_path / "state.xml"))
    second.step(40)
    second.reporters.pop().close()
    assert load_frames(tmp_path / "frames").steps.tolist() == [20, 40, 60, 80]


# deeptime


def test_trajectories_in_a_tuple_are_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    """TICA takes a tuple of two for one trajectory and its time-lagged copy, a list for two trajectories."""
    given = []

    class Stop(Exception):
        pass

    class Recorder:
        def __init__(self, **options: int) -> None:
            pass

        def fit(self, data: object) -> None:
            given.append(data)
            raise Stop

    decomposition = types.ModuleType("deeptime.decomposition")
    decomposition.TICA = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deeptime", types.ModuleType("deeptime"))
    monkeypatch.setitem(sys.modules, "deeptime.decomposition", decomposition)
    with pytest.raises(Stop):
        tica_component((np.zeros((9, 2)), np.ones((9, 2))), lag=1)
    assert isinstance(given[0], list)
    assert len(given[0]) == 2


def test_cells_that_are_cut_off_keep_their_numbers_and_are_told_of() -> None:
    """deeptime's maximum-likelihood model drops them without a word and numbers the others anew."""
    rng = np.random.default_rng(1)
    grid = CellGrid((np.linspace(0.0, 6.0, 7),), (False,))
    low, high = rng.uniform(0, 2, (200, 2, 1)), rng.uniform(3, 6, (300, 2, 1))
    with pytest.warns(UserWarning, match="from a set of 2 cells to the largest set, of 3, and back"):
        model = estimate_transitions(np.concatenate([low, high]), 1.0, grid, lag=1.0, seed=1, n_bootstrap=5)
    assert model.known.tolist() == [False, False, False, True, True, True]
    density, _ = model.stationary_density()
    assert np.isnan(density[:3]).all()
    np.testing.assert_allclose(density[3:], 1 / 3, atol=0.06)
    with pytest.raises(InputError, match="start has no cell"):
        model.mean_first_passage_time(np.array([0]), np.array([4]))
