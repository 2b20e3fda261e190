"""Metropolis moves leave an exact sample of alanine dipeptide where it is, and not when the density is wrong.

The exact sample is molecular dynamics of umbrella windows, by OpenMM, with a short time step. A generator is trained on
other frames of the same windows; then every configuration of the sample is offered fresh generated ones, several times
over, and the distribution must not move. Two kinds of comparison are made, both on the differences between a
configuration before and after its moves, whose mean is zero when the law is invariant:

* Hotelling's T² over all coordinates and the energy, for anything that moves;
* the factors of the density themselves. Leaving a factor w out moves the mean of log w by its variance, which is the
  largest shift in standard errors of all quantities, so this is where an omission shows first.

In alanine dipeptide the constraint factor varies by 0.0003 kT, too little for any test of this kind to see.
It is tested with heavy hydrogens (12 amu) on light carbons (1 amu): the masses are in the constraint factor and nowhere
else in the configurational law.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import openmm
import pytest
import torch
from scipy import stats

from openmm_sgm.engine import MDSettings
from openmm_sgm.executors import SerialExecutor
from openmm_sgm.frames import MD, Frames, Selection
from openmm_sgm.generator import Generator
from openmm_sgm.inject import log_importance, metropolis_chain
from openmm_sgm.networks import NetworkOptions
from openmm_sgm.platforms import platform_properties
from openmm_sgm.simulate import Segment, evaluate, run_segments
from openmm_sgm.symmetry import permuted, threefold_rotors
from openmm_sgm.system import MolecularSystem
from openmm_sgm.training import LevelFrames, TrainingOptions, build_training_set, train
from openmm_sgm.units import thermal_energy
from openmm_sgm.windows import WindowGrid
from openmm_sgm.zmatrix import build_z_matrix

pytestmark = pytest.mark.slow

WALKERS = 24
MOVES = 3
TRAINING = 2000
INTERVAL_FS = 100.0
"""Between frames; at a friction of 20/ps bonds and angles have forgotten the last one by then."""
STILL, SHIFTED = 3.5, 4.0
"""Standard errors: what an invariant law may show, and what a broken one must."""


@dataclass(frozen=True)
class Stage:
    """An exact sample of one window, a generator of that window, and its proposals with all that weighs them."""

    molecule: MolecularSystem
    settings: MDSettings
    grid: WindowGrid
    window: int
    generator: Generator
    sample: Frames
    sample_log_q: np.ndarray
    proposals: np.ndarray
    proposal_energies: np.ndarray
    proposal_log_q: np.ndarray

    def factors(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return log volume element and log constraint factor, each of shape (n,)."""
        labels = torch.as_tensor(np.repeat(self.grid.centers[[self.window]], len(positions), 0))
        x = torch.as_tensor(positions)
        _, log_volume = self.generator.representation.encode(x, labels)
        return log_volume.numpy(), self.generator.representation.log_constraint_factor(x).numpy()

    def log_weights(self, positions: np.ndarray, energies: np.ndarray, log_q: np.ndarray) -> np.ndarray:
        bias = self.grid.reduced_bias(self.molecule.evaluate_cvs(positions), self.grid.centers[self.window])
        beta = 1 / thermal_energy(self.molecule.temperature_k)
        return log_importance(energies, bias, self.factors(positions)[1], log_q, beta)

    def coordinates(self, positions: np.ndarray, energies: np.ndarray) -> np.ndarray:
        """Return whitened coordinates, cosines and sines of rotors, and the energy; shape (n, d)."""
        labels = torch.as_tensor(np.repeat(self.grid.centers[[self.window]], len(positions), 0))
        z = self.generator.representation.encode(torch.as_tensor(positions), labels)[0].numpy()
        n = self.generator.representation.n_linear
        angle = 0.25 * z[:, n:]
        return np.concatenate([z[:, :n], np.cos(angle), np.sin(angle), energies[:, None]], axis=1)


def stage(molecule: MolecularSystem, time_step_fs: float, samples: int, seed: int) -> Stage:
    """Simulate the window of the starting structure, train on a part of the frames, and keep the rest as the sample."""
    molecule = replace(molecule, time_step_fs=time_step_fs, friction_per_ps=20.0)
    grid = WindowGrid.over(molecule.cvs, molecule.temperature_k)
    window = grid.nearest(molecule.evaluate_cvs(molecule.positions[None])[0])
    system, prefixes, groups = molecule.biased_system()
    settings = MDSettings(
        system_xml=openmm.XmlSerializer.serialize(system),
        physical_groups=groups,
        bias_prefixes=prefixes,
        temperature_k=molecule.temperature_k,
        time_step_fs=molecule.time_step_fs,
        friction_per_ps=molecule.friction_per_ps,
        platform="Reference",
        platform_properties=platform_properties("Reference"),
    )
    interval = round(INTERVAL_FS / time_step_fs)
    segments = [
        Segment(
            walker=window,
            positions=molecule.positions,
            velocities=None,
            center=grid.centers[window],
            force_constants=grid.force_constants,
            pull_from=None,
            pull_steps=0,
            equilibration_steps=20 * interval,
            steps=interval * (samples // WALKERS),
            frame_interval=interval,
            seed=seed + k,
        )
        for k in range(WALKERS)
    ]
    results = run_segments(settings, segments, SerialExecutor(), 1)
    assert all(result.failure is None for result in results)
    positions = np.concatenate([result.positions for result in results])
    energies = np.concatenate([result.energies for result in results])
    forces = np.concatenate([result.forces for result in results])
    # a methyl group turns too seldom for a short simulation, but its three positions are equivalent
    methyls, _ = threefold_rotors(molecule, settings, positions[:4])
    assert len(methyls) == 3
    positions, forces = permuted([positions, forces], methyls, np.random.default_rng(seed))
    n = len(positions)
    frames = Frames(
        positions=positions,
        forces=forces,
        energies=energies,
        cvs=molecule.evaluate_cvs(positions),
        labels=np.repeat(grid.centers[[window]], n, 0),
        windows=np.full(n, window),
        log_weights=np.zeros(n),
        source=np.full(n, MD),
    )
    known = np.full(len(grid.centers), np.nan)
    known[window] = 0.0
    data = build_training_set(
        [LevelFrames(Selection.of([frames[:TRAINING]]), np.ones(TRAINING), known, molecule, grid, rows=4000)],
        z_matrix=build_z_matrix(
            molecule.n_atoms,
            molecule.bonds,
            molecule.masses,
            molecule.constraints,
            [cv.atoms for cv in molecule.cvs],
        ),
        rotors=methyls,
        rng=np.random.default_rng(seed),
    )
    trained = train(
        data,
        options=TrainingOptions(steps=500, batch_size=192),
        network_options=NetworkOptions(width=96, hidden=128, conditioning=32),
        seed=seed,
        ode_steps=9,
    )
    sample = frames[TRAINING:]
    draws = trained.generator.sample(grid.centers[[window]], np.array([len(sample) * MOVES]), seed)
    assert draws.valid.all()
    proposal_energies, _, _ = evaluate(settings, draws.positions)
    return Stage(
        molecule,
        settings,
        grid,
        window,
        trained.generator,
        sample,
        trained.generator.log_density(sample.positions, sample.labels),
        draws.positions,
        proposal_energies,
        draws.log_density,
    )


@pytest.fixture(scope="module")
def ordinary(alanine: MolecularSystem) -> Stage:
    return stage(alanine, time_step_fs=1.0, samples=TRAINING + 6000, seed=1)


@pytest.fixture(scope="module")
def heavy_hydrogens(alanine: MolecularSystem) -> Stage:
    """Alanine dipeptide whose hydrogens weigh 12 amu and whose methyl carbons weigh 1."""
    system = openmm.XmlSerializer.deserialize(alanine.physical_xml)
    for atom in alanine.topology.atoms():
        if atom.element.symbol == "H":
            system.setParticleMass(atom.index, 12.0)
        elif atom.name in ("CH3", "CB") or (atom.residue.name == "NME" and atom.name == "C"):
            system.setParticleMass(atom.index, 1.0)
    return stage(replace(alanine, system=system), time_step_fs=0.5, samples=TRAINING + 14_000, seed=2)


@dataclass(frozen=True)
class Moved:
    """The same walkers before and after their moves."""

    acceptance: float
    before: np.ndarray
    after: np.ndarray
    factors_before: tuple[np.ndarray, np.ndarray]
    factors_after: tuple[np.ndarray, np.ndarray]

    def p_of_hotelling(self) -> float:
        """Return the p-value of a zero mean of the differences (Hotelling 1931), over directions that vary at all."""
        difference = self.after - self.before
        difference = difference / difference.std(axis=0)
        values, vectors = np.linalg.eigh(np.cov(difference.T))
        keep = values > 1e-6 * values.max()
        scores = difference @ vectors[:, keep] / np.sqrt(values[keep])
        statistic = len(scores) * (scores.mean(axis=0) ** 2).sum()
        n, d = scores.shape
        return float(stats.f.sf(statistic * (n - d) / (d * (n - 1)), d, n - d))

    def shift(self, which: int) -> float:
        """Return the shift of a factor's mean logarithm, in standard errors."""
        difference = self.factors_after[which] - self.factors_before[which]
        return float(difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference))))


def moved(at: Stage, omit: str = "", seed: int = 3) -> Moved:
    """Offer `MOVES` generated configurations to every configuration of the sample; `omit` breaks the density.

    omit : "volume" or "constraints" leaves that factor out of the weights of all configurations
    """
    rng = np.random.default_rng(seed)
    held, n = at.sample.positions, len(at.sample)
    proposed = at.log_weights(at.proposals, at.proposal_energies, at.proposal_log_q)
    here = at.log_weights(held, at.sample.energies, at.sample_log_q)
    if omit:
        # log q holds minus the log volume element, the target plus the log constraint factor
        factor = 0 if omit == "volume" else 1
        proposed = proposed - at.factors(at.proposals)[factor]
        here = here - at.factors(held)[factor]
    positions, final_energies, accepted = held.copy(), at.sample.energies.copy(), 0
    for k in range(n):
        rows = slice(k * MOVES, (k + 1) * MOVES)
        taken, state = metropolis_chain(here[k], proposed[rows], rng)
        accepted += int(taken.sum())
        if state[-1] >= 0:
            positions[k] = at.proposals[rows][state[-1]]
            final_energies[k] = at.proposal_energies[rows][state[-1]]
    return Moved(
        acceptance=accepted / (n * MOVES),
        before=at.coordinates(held, at.sample.energies),
        after=at.coordinates(positions, final_energies),
        factors_before=at.factors(held),
        factors_after=at.factors(positions),
    )


def test_an_exact_sample_stays_where_it_is(ordinary: Stage) -> None:
    """Torsions, bonds, angles at constrained hydrogens and energies, all at once and one by one."""
    result = moved(ordinary)
    assert result.acceptance > 0.3  # most walkers have moved, so that something is being tested
    assert result.p_of_hotelling() > 1e-3
    assert abs(result.shift(0)) < STILL
    p_values = [stats.ks_2samp(a, b).pvalue for a, b in zip(result.before.T, result.after.T, strict=True)]
    assert min(p_values) > 1e-3 / len(p_values)


def test_without_the_volume_element_it_moves(ordinary: Stage) -> None:
    result = moved(ordinary, omit="volume")
    assert result.acceptance > 0.3
    assert abs(result.shift(0)) > SHIFTED


def test_an_exact_sample_with_heavy_hydrogens_stays_where_it_is(heavy_hydrogens: Stage) -> None:
    result = moved(heavy_hydrogens)
    assert result.acceptance > 0.3
    assert result.p_of_hotelling() > 1e-3
    assert abs(result.shift(0)) < STILL
    assert abs(result.shift(1)) < STILL


def test_without_the_constraint_factor_it_moves(heavy_hydrogens: Stage) -> None:
    result = moved(heavy_hydrogens, omit="constraints")
    assert result.acceptance > 0.3
    assert abs(result.shift(1)) > SHIFTED
