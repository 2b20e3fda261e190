"""Umbrella sampling as a rival: windows started by pulling, by the generator, or coupled by replica exchange.

The windows are those of the system's grid (`WindowGrid`). They are found by flooding: a window is visited from its
lowest neighbour, and only neighbours of windows below `explore_height` are, a help that a plain grid does not have.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm
from openmm import app

from .campaign import Campaign, Walker
from .executors import one_thread
from .explore import GENERATED_START, explore, open_by_trial, unreached
from .frames import BURN_IN, MD, Frames
from .free_energy import Surface, estimate
from .mbar import mbar_free_energies, settled_from
from .options import SamplerOptions
from .system import MolecularSystem
from .velocities import draw_velocities, make_integrator
from .windows import WindowGrid

__all__ = ["Snapshot", "Stopwatch", "replica_exchange", "surface_bins", "umbrella", "umbrella_seeded"]

UMBRELLA = SamplerOptions(
    pull_steps=200, equilibration_steps=100, exploration_steps=100, first_steps=1000, frame_interval=20, md_steps=20
)
"""What a window's first visit takes. Its frames count: what is not in equilibrium yet is found by `settled_from`.
Chosen among 100 + 0, 200 + 100 and 300 + 200 steps on alanine dipeptide: at a million force evaluations they cannot be
told apart, at a quarter of that the first is more often far off and the last leaves half of the bins empty."""
EXCHANGE_STEPS = 20
"""Steps between exchanges: as often as `umbrella` keeps frames, since nothing is lost by exchanging often (Sindhikara,
Emerson & Roitberg, J. Chem. Theory Comput. 6, 2804, 2010). Better than 50 on alanine dipeptide; 1.4 times as slow."""
STRETCHES = 3
"""Times within a budget that the windows are chosen anew; without it the errors were 1.2 to 4 kJ/mol at a million force
evaluations, with it 0.7 to 1.3."""
SEED_STEPS = 50
"""Steps of a window between a generated configuration and its first frame."""


@dataclass(frozen=True)
class Snapshot:
    """What a method had at one budget.

    Attributes
    ----------
    budget : force evaluations that it was given
    force_evaluations : those it had spent, exactly
    seconds : wall clock of its work so far and of estimating this surface, without that of earlier snapshots
    surface : in the bins of the system; its `std_error` is NaN for a method without one
    frames : equally weighted samples of umbrella windows, by `windows`, in time order; None for a method without
        windows
    grid : of those windows
    note : what a reader must know, in words
    extras : anything else that a row should hold; must go into JSON
    """

    budget: int
    force_evaluations: int
    seconds: float
    surface: Surface
    frames: Frames | None = None
    grid: WindowGrid | None = None
    note: str = ""
    extras: dict[str, Any] = field(default_factory=dict)


class Stopwatch:
    """Seconds of work; what is not done inside `running` does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


def surface_bins(molecule: MolecularSystem) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Return per CV the bin edges, the name and the unit of the system's surfaces."""
    edges = [np.linspace(cv.minimum, cv.maximum, n + 1) for cv, n in zip(molecule.cvs, molecule.bins, strict=True)]  # type: ignore[arg-type]
    return edges, [cv.name for cv in molecule.cvs], [cv.unit for cv in molecule.cvs]


def umbrella(
    molecule: MolecularSystem,
    seed: int,
    budgets: Sequence[int],
    executor: Executor,
    workers: int,
    options: SamplerOptions = UMBRELLA,
) -> Iterator[Snapshot]:
    """Umbrella sampling: windows started by pulling, equal MD in each, equilibration detected, MBAR.

    Spacing and force constant are the system's (18 windows a period, 1.8 umbrella widths apart, for torsions 66
    kJ/mol/rad² at 300 K: each is within MBAR's reach of its neighbours). Equilibration is detected window by window
    (Chodera, J. Chem. Theory Comput. 12, 1799, 2016), and the surface is MBAR's (Shirts & Chodera 2008), with samples
    weighted by their statistical inefficiency and errors from a block bootstrap.
    """
    campaign, clock = _campaign(molecule, options, seed, executor, workers), Stopwatch()
    for budget in budgets:
        with clock.running(), one_thread():
            _sample(campaign, budget, _independent)
        yield _snapshot(campaign, clock, budget, Frames.concatenate(campaign.chain), seed)


def umbrella_seeded(
    molecule: MolecularSystem,
    seed: int,
    budgets: Sequence[int],
    executor: Executor,
    workers: int,
    options: SamplerOptions | None = None,
) -> Iterator[Snapshot]:
    """The windows of `umbrella` and plain MD in them, each started from a generated configuration where one can be had.

    Exploration is the score method's own, with its generator and settings. A training on all its frames follows, and
    each window starts again from one of `trial` configurations, drawn by their importance weights; windows in which
    these cannot be trusted go on from where they are. Only frames after that count. What seeding alone brings: neither
    injection nor generated configurations enter the estimate.
    """
    campaign, clock = _campaign(molecule, options or SamplerOptions(), seed, executor, workers), Stopwatch()
    seeded = False
    for budget in budgets:
        with clock.running(), one_thread():
            if not seeded:
                explore(campaign, budget - campaign.cost.total)
                seeded = _finished(campaign) and _seed_windows(campaign, budget)
            if seeded:
                _sample(campaign, budget, _independent)
        chain = campaign.chain_of(MD)
        if not seeded or not len(chain):
            chain = campaign.chain_of(BURN_IN, MD)
        yield _snapshot(campaign, clock, budget, chain, seed)


def _campaign(
    molecule: MolecularSystem, options: SamplerOptions, seed: int, executor: Executor, workers: int
) -> Campaign:
    sequence = np.random.SeedSequence(seed)
    return Campaign(molecule, options, sequence, lambda line: None, executor, max(1, workers))


def _finished(campaign: Campaign) -> bool:
    """Return whether no window is left to visit."""
    return not unreached(campaign)[1]


def _sample(campaign: Campaign, budget: int, dynamics: Callable[[Campaign, np.ndarray, int], None]) -> None:
    """Explore by pulling, then spend what is left of `budget` on `dynamics` in the windows below `explore_height`.

    In `STRETCHES`, after each of which the windows are chosen anew: what a pull makes of a window's free energy is
    rough, and windows high on a ridge, which hold one state or another by the side from which they were pulled, cost
    more accuracy than they bring.
    """
    for left in range(STRETCHES, 0, -1):
        explore(campaign, budget - campaign.cost.total, generate=False)
        if not _finished(campaign):
            return
        before = campaign.cost.total
        dynamics(campaign, campaign.active_windows()[0], (budget - before) // left)
        if campaign.cost.total > before:
            campaign.update_free_energies()


def _independent(campaign: Campaign, windows: np.ndarray, budget: int) -> None:
    """Run equal MD in each window, for `budget` in all at most."""
    interval = campaign.options.frame_interval
    frames = (budget // len(windows) - 2) // (interval + 1)
    if frames > 0:
        campaign.simulate(windows, frames * interval)


def _seed_windows(campaign: Campaign, budget: int) -> bool:
    """Train, and put a generated configuration into every window that can have one; return whether it was affordable.

    Windows are equilibrated for `SEED_STEPS`; the MD that follows is the chain.
    """
    windows, _ = campaign.active_windows()
    needed = len(windows) * (campaign.options.trial + SEED_STEPS + 3) + 1000
    if campaign.cost.total + needed > budget:
        return False
    campaign.train()
    campaign.refine_ode_steps()
    opened = open_by_trial(campaign, windows.tolist(), campaign.options.trial)
    starts = {w: campaign.walkers[w].positions for w in opened}
    segments = [campaign.segment(w, start, None, None, 0, SEED_STEPS, 0) for w, start in starts.items()]
    campaign.run(segments, BURN_IN, dict.fromkeys(starts, GENERATED_START))
    return True


def _snapshot(campaign: Campaign, clock: Stopwatch, budget: int, chain: Frames, seed: int) -> Snapshot:
    started = time.perf_counter()
    with one_thread():
        if sampled := bool((chain.source == MD).any()):
            chain = chain[np.isin(chain.windows, campaign.active_windows()[0])]
        chain = chain[settled_from(chain, campaign.grid)]
        surface = surface_by_mbar(campaign.molecule, chain, campaign.grid, campaign.free_energies, seed)
    seconds = clock.seconds + time.perf_counter() - started
    note = "" if sampled else f"exploration had not ended: {len(campaign.walkers)} windows visited"
    failed = sum(w.failure is not None for w in campaign.walkers.values())
    note += f"{'; ' if note and failed else ''}{failed} windows set aside" if failed else ""
    return Snapshot(budget, campaign.cost.total, seconds, surface, chain, campaign.grid, note)


def surface_by_mbar(
    molecule: MolecularSystem, chain: Frames, grid: WindowGrid, guess: np.ndarray | None, seed: int
) -> Surface:
    """Return the surface and its errors by MBAR over windows' chains alone."""
    edges, names, units = surface_bins(molecule)
    mbar = mbar_free_energies(chain, grid, guess)[0]
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(chain)]))
    return estimate(chain, [], grid, edges, names, units, method="mbar", mbar=mbar, rng=rng).surface


_ReplicaExchangeSampler: Any = getattr(app, "ReplicaExchangeSampler", object)  # not in every OpenMM since 8.2


class WindowExchange(_ReplicaExchangeSampler):
    """OpenMM's `ReplicaExchangeSampler` for states that differ in the centres of harmonic biases alone.

    Its `simulate` evaluates the energy of every replica in every state, n² evaluations an iteration. Here only the bias
    differs, and follows from the CVs, so that exchanges cost no force evaluation: `simulate` takes it from there, and
    `exchangeReplicas`, which the class documents as made to be overridden, does the same `exchangesPerIteration` = n²
    attempts between random pairs in plain numbers (with Quantities they would take longer than the dynamics).
    """

    def __init__(
        self,
        states: list[dict[str, float]],
        simulation: app.Simulation,
        steps: int,
        molecule: MolecularSystem,
        grid: WindowGrid,
        windows: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(states, simulation, steps)
        self.molecule, self.grid, self.windows, self.rng = molecule, grid, windows, rng
        self.reduced_biases = np.zeros((len(states), len(states)))
        self.frames: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        """(positions, CVs, states) of the replicas after each iteration"""
        self.accepted = 0

    def simulate(self, iterations: int) -> None:
        for _ in range(iterations):
            for replica in range(len(self.states)):
                self.simulateReplica(replica)
            positions = np.array([s.getPositions(asNumpy=True)._value for s in self.replicaConformation])
            cvs = self.molecule.evaluate_cvs(positions)
            self.frames.append((positions, cvs, np.array(self.replicaStateIndex)))
            self.reduced_biases = self.grid.reduced_bias(cvs[:, None], self.grid.centers[self.windows])
            self.currentIteration += 1
            for reporter in self.reporters:
                reporter(self)
            self.exchangeReplicas()

    def exchangeReplicas(self) -> None:
        n = len(self.states)
        if n < 2:
            return
        first = self.rng.integers(n, size=self.exchangesPerIteration)
        second = (first + self.rng.integers(1, n, size=self.exchangesPerIteration)) % n
        thresholds: list[float] = np.log(self.rng.random(self.exchangesPerIteration)).tolist()
        pairs: list[list[int]] = np.stack([first, second], axis=1).tolist()
        bias, state = self.reduced_biases.tolist(), self.replicaStateIndex
        for (i, j), threshold in zip(pairs, thresholds, strict=True):
            a, b = state[i], state[j]
            if threshold <= bias[i][a] - bias[i][b] + bias[j][b] - bias[j][a]:
                state[i], state[j] = b, a
                self.accepted += 1


def replica_exchange(
    molecule: MolecularSystem, seed: int, budgets: Sequence[int], executor: Executor, workers: int
) -> Iterator[Snapshot]:
    """The windows of `umbrella`, started by the same pulling, coupled by OpenMM's `ReplicaExchangeSampler`.

    Exchanges are attempted every `EXCHANGE_STEPS`, n² between random pairs, as OpenMM does by default. The sampler
    steps one replica after the other in one context: it uses one core, whatever `workers` is.
    """
    if not hasattr(app, "ReplicaExchangeSampler"):
        raise RuntimeError(
            f"OpenMM {openmm.version.short_version} has no ReplicaExchangeSampler: a newer one is needed"
        )
    campaign, clock = _campaign(molecule, UMBRELLA, seed, executor, workers), Stopwatch()
    for budget in budgets:
        with clock.running(), one_thread():
            _sample(campaign, budget, _coupled)
        yield _snapshot(campaign, clock, budget, Frames.concatenate(campaign.chain), seed)


def _coupled(campaign: Campaign, windows: np.ndarray, budget: int) -> None:
    """Run the windows coupled, for `budget` in all at most; frames go to the window whose state they were in.

    A frame costs one evaluation more, for its energy, as a frame of `umbrella` does.
    """
    cost = len(windows) * (EXCHANGE_STEPS + 1)
    if budget < cost:
        return
    before = campaign.cost.simulation
    sampler = _exchange_sampler(campaign, windows)
    budget -= campaign.cost.simulation - before
    context, groups = sampler.simulation.context, campaign.settings.physical_groups
    for _ in range(budget // cost):
        sampler.simulate(1)
        positions, cvs, states = sampler.frames.pop()
        energies = np.empty(len(positions))
        for k, configuration in enumerate(positions):
            context.setPositions(configuration)
            energies[k] = context.getState(energy=True, groups=groups).getPotentialEnergy()._value
        campaign.chain.append(
            Frames(
                positions=positions,
                forces=np.zeros_like(positions),  # nothing here asks for them
                energies=energies,
                cvs=cvs,
                labels=campaign.grid.centers[windows[states]],
                windows=windows[states],
                log_weights=np.zeros(len(states)),
                source=np.full(len(states), MD, dtype=np.int8),
            )
        )
        campaign.cost.simulation += cost
    for state, final in zip(sampler.replicaStateIndex, sampler.replicaConformation, strict=True):
        window = int(windows[state])
        campaign.walkers[window] = Walker(
            final.getPositions(asNumpy=True)._value,
            final.getVelocities(asNumpy=True)._value,
            campaign.walkers[window].started_from,
        )


def _exchange_sampler(campaign: Campaign, windows: np.ndarray) -> WindowExchange:
    """Return the sampler, each replica where its window's walker is."""
    settings, molecule, grid, rng = campaign.settings, campaign.molecule, campaign.grid, campaign.rng()
    prefixes = settings.bias_prefixes
    states = [{f"{prefixes[k]}_center": float(x) for k, x in enumerate(center)} for center in grid.centers[windows]]
    integrator = make_integrator(
        settings.integrator, settings.temperature_k, settings.friction_per_ps, settings.time_step_fs / 1000
    )
    integrator.setRandomNumberSeed(int(rng.integers(1, 2**31 - 1)))
    simulation = app.Simulation(
        molecule.topology,
        openmm.XmlSerializer.deserialize(settings.system_xml),
        integrator,
        openmm.Platform.getPlatformByName(settings.platform),
        settings.platform_properties,
    )
    context = simulation.context
    for prefix, constant in zip(prefixes, grid.force_constants, strict=True):
        context.setParameter(f"{prefix}_force_constant", float(constant))
    context.setPositions(molecule.positions)
    sampler = WindowExchange(states, simulation, EXCHANGE_STEPS, molecule, grid, windows, rng)
    for k, window in enumerate(windows):
        walker = campaign.walkers[int(window)]
        context.setPositions(walker.positions)
        for name, value in states[k].items():  # the force of the window's own umbrella belongs to its velocities
            context.setParameter(name, value)
        if walker.velocities is None:
            campaign.cost.simulation += draw_velocities(context, settings.temperature_k, rng)
        else:
            context.setVelocities(walker.velocities)
        sampler.replicaConformation[k] = context.getState(
            positions=True, velocities=True, parameters=True, integratorParameters=True
        )
    return sampler
