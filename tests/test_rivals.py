"""The rivals against a molecule whose surface is known in closed form, their counts, and their parts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import openmm
import pytest
from analytic import exact_surface, triatomic

from openmm_sgm import campaign as campaign_module
from openmm_sgm import grown_bias, rivals
from openmm_sgm import umbrella as umbrella_module
from openmm_sgm.cvs import Angle, Distance, Torsion
from openmm_sgm.executors import SerialExecutor
from openmm_sgm.measure import surface_error
from openmm_sgm.networks import NetworkOptions
from openmm_sgm.options import SamplerOptions
from openmm_sgm.rivals import METHODS, Snapshot
from openmm_sgm.system import MolecularSystem
from openmm_sgm.training import TrainingOptions
from openmm_sgm.umbrella import WindowExchange, surface_bins, umbrella

BUDGETS = {True: (10_000, 40_000), False: (20_000, 400_000)}
"""With windows and without: the others take no time."""
WITH_ERRORS = {"umbrella", "umbrella-seeded", "replica-exchange", "md", "score", "score-quick"}
WITH_WINDOWS = WITH_ERRORS - {"md"}
# kJ/mol, over all bins; what a run of this length may be off by
TOLERANCE = dict.fromkeys(METHODS, 1.0) | {"replica-exchange": 1.5, "metadynamics": 1.5, "opes": 1.5, "score": 0.5}
QUICK = SamplerOptions(
    training=TrainingOptions(steps=60, batch_size=256, check_every=30, rows=2000),
    network=NetworkOptions(width=32, hidden=32, conditioning=16),
)


@pytest.fixture(scope="module")
def molecule() -> MolecularSystem:
    return replace(triatomic(), friction_per_ps=20.0)  # at 1/ps a vibration keeps its energy for 1,000 steps


@pytest.fixture(scope="module")
def exact(molecule: MolecularSystem) -> np.ndarray:
    return exact_surface(surface_bins(molecule)[0][0])


@pytest.fixture(scope="module", params=list(METHODS))
def snapshots(request: pytest.FixtureRequest, molecule: MolecularSystem) -> tuple[str, list[Snapshot]]:
    name = request.param
    if METHODS[name].needs:
        pytest.importorskip(METHODS[name].needs)
    run: Any = METHODS[name].run
    budgets = BUDGETS[name in WITH_WINDOWS]
    if METHODS[name].generates:
        return name, list(run(molecule, 1, budgets, SerialExecutor(), 0, options=QUICK))
    return name, list(run(molecule, 1, budgets, SerialExecutor(), 0))


def test_every_method_gives_a_snapshot_at_each_budget(
    snapshots: tuple[str, list[Snapshot]], molecule: MolecularSystem
) -> None:
    name, found = snapshots
    assert [s.budget for s in found] == list(BUDGETS[name in WITH_WINDOWS])
    for s in found:
        # what is spent is close to what was given, and never above it
        assert 0.7 * s.budget < s.force_evaluations <= s.budget
        assert s.surface.free_energy.shape == molecule.bins
        known = np.isfinite(s.surface.free_energy)
        assert np.min(s.surface.free_energy[known]) == 0
        assert np.isfinite(s.surface.std_error[known]).all() == (name in WITH_ERRORS)
        assert (s.frames is not None and s.grid is not None) == (name in WITH_WINDOWS)
        if s.frames is not None and s.grid is not None:
            assert s.frames.windows.max() < len(s.grid.centers)
            np.testing.assert_allclose(s.frames.labels, s.grid.centers[s.frames.windows])
    assert min(s.seconds for s in found) > 0


def test_every_method_finds_the_surface(snapshots: tuple[str, list[Snapshot]], exact: np.ndarray) -> None:
    name, found = snapshots
    error = surface_error(found[-1].surface, exact)
    assert error.coverage > 0.75
    assert error.rmse_kj_mol < TOLERANCE[name]
    # a reference shifted by five bins is told apart
    assert surface_error(found[-1].surface, np.roll(exact, 5)).rmse_kj_mol > TOLERANCE[name]


def test_error_bars_are_of_the_right_size(snapshots: tuple[str, list[Snapshot]], exact: np.ndarray) -> None:
    name, found = snapshots
    if name in WITH_ERRORS:
        assert 0.2 < surface_error(found[-1].surface, exact).error_bar_ratio < 3


def test_a_seed_gives_the_same_run_again_and_another_one_does_not(molecule: MolecularSystem) -> None:
    for run in (umbrella, rivals.md, grown_bias.metadynamics):
        surfaces = [next(iter(run(molecule, seed, [15_000], SerialExecutor(), 0))).surface for seed in (1, 1, 2)]
        np.testing.assert_array_equal(surfaces[0].free_energy, surfaces[1].free_energy)
        assert not np.array_equal(surfaces[0].free_energy, surfaces[2].free_energy, equal_nan=True)


@pytest.mark.parametrize("run", [umbrella, umbrella_module.replica_exchange, grown_bias.metadynamics, rivals.md])
def test_every_step_and_every_energy_is_counted(
    run: rivals.Rival, molecule: MolecularSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0
    step, get_state = openmm.LangevinMiddleIntegrator.step, openmm.Context.getState

    def counting_step(self: openmm.LangevinMiddleIntegrator, steps: int) -> None:
        nonlocal counted
        counted += steps
        step(self, steps)

    def counting_state(self: openmm.Context, *arguments: Any, **asked: Any) -> openmm.State:
        nonlocal counted
        of_bias_alone = isinstance(asked.get("groups"), set)  # the height of a hill: no force of the molecule
        counted += bool((asked.get("energy") or asked.get("forces")) and not of_bias_alone)
        return get_state(self, *arguments, **asked)

    def refuse(self: Any) -> None:
        raise AssertionError("the energies of all states were evaluated")

    def heats(self: openmm.Context, *arguments: Any) -> None:
        raise AssertionError("velocities moved back by half a step heat what starts with them")

    choice = campaign_module.choose_platform(molecule.system, molecule.positions)
    for module in (campaign_module, rivals, grown_bias):
        monkeypatch.setattr(module, "choose_platform", lambda *_, **__: choice)  # which steps to time platforms
    monkeypatch.setattr(openmm.LangevinMiddleIntegrator, "step", counting_step)
    monkeypatch.setattr(openmm.Context, "getState", counting_state)
    monkeypatch.setattr(openmm.Context, "setVelocitiesToTemperature", heats)
    monkeypatch.setattr("openmm.app.internal.multistatesampler.MultistateSampler.computeAllEnergies", refuse)
    snapshot = next(iter(run(molecule, 1, [12_000], SerialExecutor(), 0)))
    assert snapshot.force_evaluations == counted
    assert counted > 8_000


def exchange_frequencies(biases: np.ndarray, flip: bool = False) -> dict[tuple[int, ...], float]:
    """Return how often each assignment of states to replicas stands after exchanges with fixed reduced biases."""
    sampler = WindowExchange.__new__(WindowExchange)
    n = len(biases)
    sampler.states, sampler.replicaStateIndex, sampler.exchangesPerIteration = [{}] * n, list(range(n)), 3
    sampler.rng, sampler.accepted = np.random.default_rng(5), 0
    sampler.reduced_biases = -biases if flip else biases
    counts = dict.fromkeys(itertools.permutations(range(n)), 0)
    for _ in range(30_000):
        sampler.exchangeReplicas()
        counts[tuple(sampler.replicaStateIndex)] += 1
    return {k: v / 30_000 for k, v in counts.items()}


def test_exchanges_sample_the_assignments_by_their_weight() -> None:
    biases = np.array([[0.0, 0.7, 2.0], [0.5, 0.1, 0.6], [1.5, 0.4, 0.2]])
    weights = {p: np.exp(-sum(biases[i, p[i]] for i in range(3))) for p in itertools.permutations(range(3))}
    exact = {p: w / sum(weights.values()) for p, w in weights.items()}
    found = exchange_frequencies(biases)
    assert max(abs(found[p] - exact[p]) for p in exact) < 0.015
    wrong = exchange_frequencies(biases, flip=True)
    assert max(abs(wrong[p] - exact[p]) for p in exact) > 0.1


def test_a_grid_of_points_becomes_bins(alanine: MolecularSystem) -> None:
    molecule = replace(alanine, bins=(36, 30))
    kt = grown_bias.thermal_energy(molecule.temperature_k)

    def truth(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
        return 4 * np.cos(phi) + 3 * np.sin(psi + 0.3)

    phi, psi = np.linspace(-np.pi, np.pi, 90), np.linspace(-np.pi, np.pi, 70)
    values = truth(phi[None, :], psi[:, None])  # as OpenMM gives it: the last CV first
    surface = grown_bias._binned(molecule, values)
    edges, _, _ = surface_bins(molecule)
    fine = [
        np.linspace(e[0], e[-1], 40 * (len(e) - 1), endpoint=False).reshape(-1, 40) + (e[1] - e[0]) / 80 for e in edges
    ]
    exact = -kt * np.log(np.exp(-truth(fine[0][:, :, None, None], fine[1][None, None]) / kt).mean(axis=(1, 3)))
    np.testing.assert_allclose(surface.free_energy, exact - exact.min(), atol=0.02)
    assert np.isnan(surface.std_error).all()
    values[:35] = np.nan  # the lower half of psi
    half = grown_bias._binned(molecule, values).free_energy
    assert np.isnan(half[:, :14]).all()
    assert np.isfinite(half[:, 16:]).all()


def test_what_a_run_has_not_reached_is_empty(molecule: MolecularSystem) -> None:
    for run in (umbrella, grown_bias.metadynamics, rivals.md):
        surface = next(iter(run(molecule, 1, [1500], SerialExecutor(), 0))).surface
        assert np.isnan(surface.free_energy).any()


def test_two_mixed_cvs_and_three_can_be_compared() -> None:
    two = (Distance("r", (0, 1), 0.1, 0.2, windows=3), Angle("a", (0, 1, 2), 1.2, 2.6, windows=3))
    three = (*two, Distance("s", (1, 2), 0.1, 0.2, windows=2))
    for cvs in (two, three):
        molecule = replace(triatomic(cvs=cvs), bins=(4,) * len(cvs), friction_per_ps=20.0)
        for run in (umbrella, umbrella_module.replica_exchange, grown_bias.metadynamics, rivals.md):
            last = list(run(molecule, 1, [20_000], SerialExecutor(), 0))[-1]
            assert last.surface.free_energy.shape == molecule.bins
            assert np.isfinite(last.surface.free_energy).sum() >= 4


def test_widths_are_the_published_ones_for_torsions(alanine: MolecularSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    bias_variable = grown_bias.app.BiasVariable

    def remember(*arguments: Any) -> Any:
        made.append(arguments[1:5])
        return bias_variable(*arguments)

    monkeypatch.setattr(grown_bias.app, "BiasVariable", remember)
    molecule = replace(alanine, cvs=(Torsion("psi", (6, 8, 14, 16)),), bins=(36,))
    snapshot = next(iter(grown_bias.metadynamics(molecule, 1, [1000], SerialExecutor(), 0)))
    assert made == [(-np.pi, np.pi, 0.35, True)]
    assert snapshot.force_evaluations == 1000


def test_walls_keep_a_growing_bias_in_its_range(molecule: MolecularSystem) -> None:
    low, high = molecule.cvs[0].minimum, molecule.cvs[0].maximum
    wall = grown_bias._wall(molecule.cvs[0], molecule.temperature_k)
    system = openmm.System()
    for _ in range(3):
        system.addParticle(1.0)
    system.addForce(wall)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    assert low is not None
    assert high is not None

    def energy(r: float) -> float:
        context.setPositions([(0, 0, 0), (r, 0, 0), (r, r, 0)])
        return float(context.getState(energy=True).getPotentialEnergy()._value)

    kt = grown_bias.thermal_energy(molecule.temperature_k)
    assert energy(0.5 * (low + high)) == energy(low + 1e-3) == energy(high - 1e-3) == 0
    step = 0.02 * (high - low)
    assert energy(high + step) == pytest.approx(kt, rel=1e-6)
    assert energy(low - step) == pytest.approx(kt, rel=1e-6)


def test_an_openmm_without_the_exchange_sampler_is_told(
    molecule: MolecularSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(umbrella_module.app, "ReplicaExchangeSampler")
    with pytest.raises(RuntimeError, match="has no ReplicaExchangeSampler"):
        next(iter(umbrella_module.replica_exchange(molecule, 1, [1000], SerialExecutor(), 0)))
