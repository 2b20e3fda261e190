"""The state of a run and its phases: explore, train, generate and inject, simulate. `sampler` puts them in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import openmm
import torch
from scipy.cluster.hierarchy import DisjointSet

from .cartesian import CartesianRepresentation
from .cvs import Torsion
from .executors import Pace, SerialExecutor, UnitCounts, one_thread
from .frames import BURN_IN, GENERATED, INJECTED, MD, SEED, Frames, Selection
from .generator import Generator, Samples, generate, log_densities
from .hidden import HiddenStates, hidden_states_in_frames
from .importance import Draws, Weights, effective_sample_size
from .inject import Ledger, impossible, log_importance, metropolis_chain
from .journal import Journal
from .mbar import bias_terms, weighted_mbar
from .options import SamplerOptions
from .platforms import PlatformChoice, PlatformOptions, choose_platform
from .representation import Representation
from .simulate import MDSettings, Segment, SegmentResult, evaluate_safely, run_segments
from .symmetry import threefold_rotors
from .system import MolecularSystem
from .training import LevelFrames, build_training_set, train
from .units import InputError, thermal_energy
from .windows import WindowGrid
from .zmatrix import ZMatrix, build_z_matrix

__all__ = ["Campaign", "Cost", "Plan", "Walker", "refuse_unfit"]

MOST_INJECTED = 100
"""States of a window's chain that are kept of one round's Metropolis tests; more are thinned. Where weights cannot be
trusted the chain is all that estimates have of a window: at least as many as were accepted are kept there."""
DENSITY_FRAMES = 256
ROUGH_KT = 0.5
"""Added to the standard error of free energies from a few trials."""
MOST_ODE_STEPS = 64


@dataclass
class Walker:
    """What a window holds: its configuration, why it was set aside if it was, and how it was started."""

    positions: np.ndarray
    velocities: np.ndarray | None
    started_from: str
    failure: str | None = None


class Weighed(NamedTuple):
    """Draws with what OpenMM says of them, all of length n: positions (nm), energies (kJ/mol, NaN where there is none),
    forces (kJ/mol/nm), log importance weights (−inf where impossible), and why they are impossible, '' where not."""

    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    log_weights: np.ndarray
    reasons: np.ndarray


@dataclass
class Cost:
    """Force evaluations, exactly, and wall seconds; and what became of units of work, see `UnitCounts`."""

    simulation: int = 0
    generation: int = 0
    simulate_seconds: float = 0.0
    train_seconds: float = 0.0
    generate_seconds: float = 0.0
    units_run: int = 0
    units_retried: int = 0
    units_set_aside: int = 0

    def count(self, units: UnitCounts) -> None:
        """Add what became of some units."""
        self.units_run += units.run
        self.units_retried += units.retried
        self.units_set_aside += units.set_aside

    @property
    def total(self) -> int:
        """All force evaluations."""
        return self.simulation + self.generation


@dataclass
class Plan:
    """What is left of a call of `ScoreSampler.run`; part of the state, so that an interrupted call can go on.

    Attributes
    ----------
    end : force evaluations in all, when the call ends
    explore : how many of them are left for exploration
    rounds : rounds left; explored : whether the next one's exploration is done
    """

    end: int
    explore: int
    rounds: int
    explored: bool = False


@dataclass
class Shared:
    """What the campaigns of all temperatures have in common.

    Attributes
    ----------
    ledger : every generated configuration; cost : of all temperatures; generator : the latest, or None
    rotors : groups of equivalent atoms, None until they have been looked for; trainings : what each training did
    draw_pace : of generation, for its time limit; not saved
    """

    ledger: Ledger
    cost: Cost = field(default_factory=Cost)
    generator: Generator | None = None
    rotors: list[tuple[int, int, int]] | None = None
    trainings: list[dict[str, Any]] = field(default_factory=list)
    draw_pace: Pace = field(default_factory=Pace)


class Campaign:
    """Everything a run knows, and what it can do next. Phases change the state; nothing else does.

    Attributes
    ----------
    molecule, grid, options : what is sampled, over which windows, and how
    starts : shape (n, n_atoms, 3), nm; of the target, what exploration begins with besides the molecule's positions
    walkers : window -> `Walker`, for every window visited
    chain : frames of the windows' own simulations, burn-in included, in time order
    trials : generated frames by which windows were opened in the exploration; for training, not for estimators
    rounds : generated frames, one `Draws` a round
    burn_in, learnt_from : frames of the chain and rounds that are in no estimate, see `leave_out_what_was`
    free_energies : float64, shape (n_windows,), kT; NaN where not known
    plan : what is left to do
    platform : where dynamics runs: the fastest, or the one given, since noise and rounding are the platform's own
    target : the campaign at the temperature of interest: this one, or the one that this is a hotter level of
    hotter : of the target, campaigns at `options.ladder`'s temperatures, ascending: the same windows, for finding
        states that cold walkers do not reach. They share the target's generator and costs, and are in no estimate
    on_set_aside : of the target; called with a segment that was given up, the reason and the temperature in K
    """

    def __init__(
        self,
        molecule: MolecularSystem,
        options: SamplerOptions,
        seed: np.random.SeedSequence,
        say: Callable[[str], None],
        executor: Executor | None = None,
        chunks: int = 1,
        *,
        target: Campaign | None = None,
        platform: PlatformOptions | None = None,
    ) -> None:
        self.molecule, self.options, self.seed, self.say = molecule, options, seed, say
        self.target = target or self
        self._executor, self._chunks = executor or SerialExecutor(), chunks
        self._journal: Journal | None = None
        self.grid = _grid(molecule, options, self.target.molecule.temperature_k)
        self.beta = 1 / thermal_energy(molecule.temperature_k)
        system, prefixes, physical_groups = molecule.biased_system()
        self.platform: PlatformChoice = choose_platform(system, molecule.positions, options=platform)
        self.on_set_aside: Callable[[Segment, str, float], None] = lambda segment, reason, temperature_k: None
        self.stereo = molecule.stereo
        self.settings = MDSettings(
            system_xml=openmm.XmlSerializer.serialize(system),
            physical_groups=physical_groups,
            bias_prefixes=prefixes,
            temperature_k=molecule.temperature_k,
            time_step_fs=molecule.time_step_fs,
            friction_per_ps=molecule.friction_per_ps,
            platform=self.platform.name,
            platform_properties=self.platform.properties,
            integrator=molecule.integrator,
            stereo=self.stereo,
        )
        self.z_matrix = _z_matrix(molecule)
        self.starts = np.empty((0, *molecule.positions.shape))
        self.walkers: dict[int, Walker] = {}
        self.chain: list[Frames] = []
        self.trials: list[Draws] = []
        self.rounds: list[Draws] = []
        self.burn_in, self.learnt_from = 0, 0
        self.free_energies = np.full(len(self.grid.centers), np.nan)
        self.plan = Plan(0, 0, 0)
        self.round = 0
        self.acceptance = np.full(len(self.grid.centers), np.nan)
        self.ess = np.full(len(self.grid.centers), np.nan)
        self.density_error = float("nan")
        self.hotter: list[Campaign] = []
        if target is None:
            self._shared = Shared(Ledger([cv.name for cv in molecule.cvs]))
            for temperature in options.ladder:
                hot = replace(molecule, temperature_k=temperature)
                self.hotter.append(
                    Campaign(hot, options, seed.spawn(1)[0], self._say_hot(temperature), target=self, platform=platform)
                )

    # what all temperatures have in common

    @property
    def shared(self) -> Shared:
        """Generator, costs and ledger, of all temperatures together."""
        return self.target._shared

    @property
    def generator(self) -> Generator | None:
        """The latest, or None."""
        return self.shared.generator

    @property
    def cost(self) -> Cost:
        """What has been spent."""
        return self.shared.cost

    @property
    def ledger(self) -> Ledger:
        """Every generated configuration."""
        return self.shared.ledger

    @property
    def executor(self) -> Executor:
        """Where MD and generation run."""
        return self.target._executor

    @property
    def chunks(self) -> int:
        """On how many workers."""
        return self.target._chunks

    @property
    def pace(self) -> Pace:
        """What an MD step takes one worker, as timed when the platform was chosen."""
        speed = self.platform.steps_per_second.get(self.platform.name, 0.0)
        return Pace(1 / speed if speed > 0 else float("nan"))

    def work_on(self, executor: Executor, chunks: int, journal: Journal | None = None) -> None:
        """Run everything on `executor` from now on, which has so many workers; trainings are saved in the journal."""
        self.target._executor, self.target._chunks, self.target._journal = executor, chunks, journal

    def _say_hot(self, temperature: float) -> Callable[[str], None]:
        return lambda line: self.say(f"{temperature:g} K: {line}")

    # molecular dynamics

    def simulate(self, windows: np.ndarray, steps: int) -> None:
        """Run MD in each window from what it holds; the frames belong to the windows' equilibrium chains."""
        segments = [
            self.segment(int(w), self.walkers[w].positions, self.walkers[w].velocities, None, 0, 0, steps)
            for w in windows
            if not self.walkers[w].failure
        ]
        self.run(segments, MD)

    def segment(
        self,
        window: int,
        positions: np.ndarray,
        velocities: np.ndarray | None,
        pull_from: np.ndarray | None,
        pull_steps: int,
        equilibration_steps: int,
        steps: int | None = None,
    ) -> Segment:
        """Return a stretch of MD in a window, with this run's frame interval and a seed of its own; see `Segment`."""
        return Segment(
            walker=window,
            positions=positions,
            velocities=velocities,
            center=self.grid.centers[window],
            force_constants=self.grid.force_constants,
            pull_from=pull_from,
            pull_steps=pull_steps,
            equilibration_steps=equilibration_steps,
            steps=self.options.exploration_steps if steps is None else steps,
            frame_interval=self.options.frame_interval,
            seed=int(self.rng().integers(2**31)),
        )

    def run(self, segments: list[Segment], source: int, origins: dict[int, str] | None = None) -> None:
        """Run segments and take over what they return: frames of provenance `source`, walkers, failures, cost.

        origins : for windows that are visited for the first time, what they started from
        """
        started = time.perf_counter()
        counts = UnitCounts()
        results = run_segments(self.settings, segments, self.executor, self.chunks, self.pace, counts)
        self.cost.count(counts)
        self.cost.simulate_seconds += time.perf_counter() - started
        for segment, result in zip(segments, results, strict=True):
            window = segment.walker
            self.cost.simulation += result.force_evaluations
            origin = origins[window] if origins else self.walkers[window].started_from
            self.walkers[window] = Walker(result.final_positions, result.final_velocities, origin, result.failure)
            if result.failure:
                self.say(f"window {window} at {self.describe(window)} set aside: {result.failure}")
                self.target.on_set_aside(segment, result.failure, self.molecule.temperature_k)
        good = [(s, r) for s, r in zip(segments, results, strict=True) if len(r.energies)]
        if good:
            positions = np.concatenate([r.positions for _, r in good])
            windows = np.concatenate([np.full(len(r.energies), s.walker) for s, r in good])
            self.chain.append(
                self._frames(
                    positions,
                    np.concatenate([r.energies for _, r in good]),
                    np.concatenate([r.forces for _, r in good]),
                    windows,
                    np.zeros(len(windows)),
                    source,
                )
            )

    def run_unrecorded(self, segment: Segment) -> SegmentResult:
        """Run a segment that is no window's, and count its cost."""
        started = time.perf_counter()
        counts = UnitCounts()
        result = run_segments(self.settings, [segment], self.executor, self.chunks, self.pace, counts)[0]
        self.cost.count(counts)
        self.cost.simulation += result.force_evaluations
        self.cost.simulate_seconds += time.perf_counter() - started
        return result

    def _frames(
        self,
        positions: np.ndarray,
        energies: np.ndarray,
        forces: np.ndarray,
        windows: np.ndarray,
        log_weights: np.ndarray,
        source: int,
    ) -> Frames:
        return Frames(
            positions=positions,
            forces=forces,
            energies=energies,
            cvs=self.molecule.evaluate_cvs(positions),
            labels=self.grid.centers[windows],
            windows=windows,
            log_weights=log_weights,
            source=np.full(len(windows), source, dtype=np.int8),
        )

    def open(self, seeds: Frames, origin: str) -> None:
        """Let the windows of `seeds`, one generated frame each, start from them."""
        for window, positions in zip(seeds.windows, seeds.positions, strict=True):
            self.walkers[int(window)] = Walker(positions, None, origin)
        n = len(seeds)
        self.chain.append(replace(seeds, log_weights=np.zeros(n), source=np.full(n, SEED, dtype=np.int8)))

    # training

    def train(self, steps: int | None = None) -> None:
        """Fit the generator to all frames: MD as it is, generated configurations by their exact weights."""
        started = time.perf_counter()
        shared, target = self.shared, self.target
        levels = [level for level in (target, *target.hotter) if np.isfinite(level.free_energies).any()]
        if shared.rotors is None:
            some = levels[0].chain[0].positions[:4]
            shared.rotors, cost = threefold_rotors(self.molecule, self.settings, some)
            self.cost.generation += cost
        rng = self.rng()
        options = self.options.training
        if steps is not None:
            options = replace(options, steps=steps)
        # the target's own data counts most once there is any
        rows = {True: options.rows, False: options.rows // (4 if target in levels else len(levels))}
        known = [level._training_frames(rows[level is target]) for level in levels]
        data = build_training_set(known, z_matrix=self.z_matrix, rotors=shared.rotors, rng=rng)
        ode_steps = shared.generator.steps if shared.generator else self.options.ode_steps
        with one_thread():
            result = train(
                data,
                options=options,
                network_options=self.options.network,
                seed=int(rng.integers(2**31)),
                previous=shared.generator,
                ode_steps=ode_steps,
                checkpoint=target._journal.checkpoint() if target._journal else None,
            )
        shared.generator = result.generator
        self.cost.train_seconds += time.perf_counter() - started
        n = sum(len(level.frames) for level in known)
        shared.trainings.append(
            {
                "round": target.round,
                "frames": n,
                "steps": result.steps,
                "seconds": time.perf_counter() - started,
                "held_out": result.held_out,
            }
        )
        self.say(f"trained on {n} frames, {result.steps} steps")

    def frames_to_learn_from(self) -> int:
        """Return how many simulated frames there are, and effective generated ones."""
        simulated = sum(int(np.isin(part.source, (BURN_IN, MD)).sum()) for part in self.chain)
        drawn = [self.trial_weights(), *(Weights([draws], len(self.grid.centers)) for draws in self.rounds)]
        return simulated + int(sum(weights.effective.sum() for weights in drawn))

    def _training_frames(self, rows: int) -> LevelFrames:
        """Return the frames to train on and their weights; generated frames count by their effective number."""
        own = [np.isin(part.source, (BURN_IN, MD)) for part in self.chain]
        weights = [np.ones(int(rows.sum())) for rows in own]
        weights.append(self.trial_weights().effective)
        weights += [Weights([draws], len(self.grid.centers)).effective for draws in self.rounds]
        drawn = [draws.frames for draws in (*self.trials, *self.rounds)]
        frames = Selection.of([*self.chain, *drawn], [*own, *(np.arange(len(part)) for part in drawn)])
        return LevelFrames(frames, np.concatenate(weights), self.free_energies, self.molecule, self.grid, rows)

    def refine_ode_steps(self) -> None:
        """Take more integration steps until doubling them moves log q by less than allowed, and remember the error.

        The error is the spread of the change of log q over `DENSITY_FRAMES` late frames of the active windows, burn-in
        and 2.5 % at either end left out (a configuration far from the model's has hardly a weight, and would set the
        steps for all); it falls with the fourth power of the steps, which tells how many to take.
        """
        assert self.generator is not None
        started = time.perf_counter()
        frames = self.chain_of(SEED, MD, INJECTED)
        if len(frames) < DENSITY_FRAMES // 4:
            frames = Frames.concatenate(self.chain)
        usable = np.flatnonzero(np.isin(frames.windows, self.active_windows()[0]))
        # each configuration once: a walker that is stuck far from the model's would be a tenth of the frames
        usable = usable[np.sort(np.unique(frames.energies[usable], return_index=True)[1])]
        rows = self.rng().permutation(usable[-8 * DENSITY_FRAMES :])[:DENSITY_FRAMES]
        positions, labels = frames.positions[rows], self.grid.labels(frames.labels[rows])

        def density(steps: int) -> np.ndarray:
            assert self.generator is not None
            return self._log_densities(self.generator.with_steps(steps), positions, labels)

        steps = self.generator.steps
        values = density(steps)
        while True:
            finer = density(2 * steps)
            both = np.isfinite(values) & np.isfinite(finer)
            change = np.sort((values - finer)[both])
            self.density_error = float(np.std(change[len(change) // 40 : len(change) - len(change) // 40]))
            if not self.density_error > self.options.density_error or steps >= MOST_ODE_STEPS:
                break
            needed = steps * (self.density_error / self.options.density_error) ** 0.25
            steps = min(MOST_ODE_STEPS, max(steps + 1, int(np.ceil(needed))))
            values = density(steps)
        self.shared.generator = self.generator.with_steps(steps)
        self.cost.generate_seconds += time.perf_counter() - started

    # generation and injection

    def generate_and_inject(self, windows: np.ndarray, counts: np.ndarray) -> None:
        """Draw `counts` configurations for each sound window, weigh them exactly, and offer them to its walker.

        The walker's chain in its window goes on: MD, then one Metropolis test for each configuration, then MD again.
        """
        assert self.generator is not None
        held = self._last_frames(windows)
        here = self._log_weights_of(held)
        frames, log_weights, submit = self.draw(windows, counts, "injection")
        states = Frames.concatenate([frames, held])
        rng = self.rng()
        ends = np.cumsum(counts)
        row_of = np.full(len(log_weights), -1)
        row_of[np.isfinite(log_weights)] = np.arange(len(frames))
        verdicts = np.empty(len(log_weights), dtype=object)
        injected = []
        drawn = np.zeros(len(self.grid.centers), dtype=np.int64)
        known = ~np.isnan(log_weights)
        drawn[windows] = [known[end - count : end].sum() for end, count in zip(ends, counts, strict=True)]
        self.rounds.append(Draws(frames, drawn))
        trusted = self.draw_weights().trusted
        for k, window in enumerate(windows):
            proposals = log_weights[ends[k] - counts[k] : ends[k]]
            accepted, state = metropolis_chain(here[k], proposals, rng)  # never accepts what is not known
            verdicts[ends[k] - counts[k] : ends[k]] = np.where(accepted, "accepted", "rejected")
            sound = known[ends[k] - counts[k] : ends[k]]
            self.acceptance[window] = accepted[sound].mean() if sound.any() else np.nan
            self.ess[window] = effective_sample_size(proposals[sound]) if sound.any() else np.nan
            stays = np.where(state >= 0, row_of[ends[k] - counts[k] + state], len(frames) + k)
            every = -(-len(stays) // MOST_INJECTED)
            if not trusted[window] and accepted.any():
                every = min(every, len(stays) // int(accepted.sum()))
            injected.append(stays[::-every][::-1])  # the last is what the walker holds
            if accepted.any():
                self.walkers[window] = Walker(frames.positions[stays[-1]], None, self.walkers[window].started_from)
        submit(verdicts)
        states = states[np.concatenate(injected)]
        self.chain.append(
            replace(states, log_weights=np.zeros(len(states)), source=np.full(len(states), INJECTED, dtype=np.int8))
        )

    def _last_frames(self, windows: np.ndarray) -> Frames:
        """Return the last frame of each window's chain, which is what its walker holds, moved by MD or not."""
        chain = Frames.concatenate(self.chain)
        last = {int(window): row for row, window in enumerate(chain.windows)}
        return chain[np.array([last[int(w)] for w in windows])]

    def _log_weights_of(self, held: Frames) -> np.ndarray:
        assert self.generator is not None
        started = time.perf_counter()
        log_q = self._log_densities(self.generator, held.positions, self.grid.labels(held.labels))
        bias = self.grid.reduced_bias(held.cvs, held.labels)
        factor = self._constraint_factor(held.positions)
        self.cost.generate_seconds += time.perf_counter() - started
        return log_importance(held.energies, bias, factor, log_q, self.beta)

    def _log_densities(self, generator: Generator, positions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        counts, pace = UnitCounts(), self.shared.draw_pace
        log_q = log_densities(generator, positions, labels, self.executor, self.chunks, pace, counts)
        self.cost.count(counts)
        return log_q

    def _constraint_factor(self, positions: np.ndarray) -> np.ndarray:
        assert self.generator is not None
        return self.generator.representation.log_constraint_factor(torch.as_tensor(positions)).numpy()

    def draw(
        self, windows: np.ndarray, counts: np.ndarray, purpose: str
    ) -> tuple[Frames, np.ndarray, Callable[[np.ndarray], None]]:
        """Generate, evaluate and weigh; return (frames with a finite weight, all log-weights, how to enter verdicts).

        Where a worker failed at a draw the log-weight is NaN: it says nothing of the window, and counts as not drawn.
        The ledger gets a row for every configuration asked for; those of purpose "trial" are entered at once.
        """
        assert self.generator is not None
        started = time.perf_counter()
        seed = np.random.SeedSequence(int(self.rng().integers(2**63)))
        labels = self.grid.labels(self.grid.centers[windows])
        units, pace = UnitCounts(), self.shared.draw_pace
        samples = generate(self.generator, labels, counts, seed, self.executor, self.chunks, pace, units)
        self.cost.count(units)
        pace.observe(len(samples.valid), self.chunks * (time.perf_counter() - started))
        window_of = np.repeat(windows, counts)
        weighed = self.weigh(samples, self.grid.centers[window_of])
        self.cost.generation += int(samples.valid.sum())
        log_weights, reasons = weighed.log_weights, weighed.reasons
        finite = np.isfinite(log_weights)
        frames = self._frames(
            weighed.positions[finite],
            weighed.energies[finite],
            weighed.forces[finite],
            window_of[finite],
            log_weights[finite],
            GENERATED,
        )
        self.cost.generate_seconds += time.perf_counter() - started

        def submit(verdicts: np.ndarray) -> None:
            self.ledger.add(
                self.target.round,
                self.molecule.temperature_k,
                purpose,
                window_of,
                self.grid.centers[window_of],
                weighed.energies,
                samples.log_density,
                log_weights,
                np.where(reasons == "", verdicts, reasons),
            )

        if purpose == "trial":
            submit(np.full(len(reasons), "not offered"))
        return frames, log_weights, submit

    def weigh(self, samples: Samples, points: np.ndarray) -> Weighed:
        """Return the exact importance weights of draws at `points` (n, n_cvs): an evaluation for each valid one.

        Of draws or evaluations that a worker has failed at nothing is known: log-weights are NaN.
        """
        positions = np.where(samples.valid[:, None, None], samples.positions, self.molecule.positions)
        energies, forces = np.full(len(positions), np.nan), np.zeros(positions.shape)
        lost, units = samples.lost, UnitCounts()
        energies[samples.valid], forces[samples.valid], lost[samples.valid], evaluations = evaluate_safely(
            self.settings, positions[samples.valid], self.executor, self.chunks, self.pace, units
        )
        self.cost.count(units)
        self.cost.generation += evaluations - int(samples.valid.sum())  # energies that were asked for twice
        reasons = impossible(samples._replace(positions=positions), energies, self.stereo)
        bias = self.grid.reduced_bias(self.molecule.evaluate_cvs(positions), points)
        factor = self._constraint_factor(positions)
        log_weights = log_importance(energies, bias, factor, samples.log_density, self.beta)
        log_weights[reasons != ""] = -np.inf
        log_weights[lost], reasons[lost] = np.nan, "not known: a worker failed twice"
        return Weighed(positions, energies, forces, log_weights, reasons)

    # estimates on the way

    def update_free_energies(self) -> None:
        """Estimate the windows' free energies: by MBAR at first, held by the generator's own once there are draws.

        Burn-in frames and trials count only for windows that have no others yet, injected states where draws cannot be
        trusted. What a few trials say of a free energy is rough, but absolute: a basin behind a ridge gets its level
        from them, which windows pulled across the ridge would misplace by tens of kJ/mol (measured).
        """
        draws, trials = self.draw_weights(), self.trial_weights()
        prior, error = draws.free_energies()
        rough, rough_error = trials.free_energies(rough=True)
        prior, error = (
            np.where(np.isfinite(prior), exact, tried)
            for exact, tried in ((prior, rough), (error, rough_error + ROUGH_KT))
        )
        settled = draws.trusted.copy()
        for part in self.chain:
            settled[part.windows[np.isin(part.source, (MD, INJECTED))]] = True
        # windows and CVs of the frames that count, and their weights; positions would be copied for nothing
        used: list[tuple[np.ndarray, np.ndarray]] = []
        weights = []
        for part in self.chain:
            counts = (part.source == MD) | ((part.source == BURN_IN) & ~settled[part.windows])
            counts |= (part.source == INJECTED) & ~draws.trusted[part.windows]
            used.append((part.windows[counts], part.cvs[counts]))
            weights.append(np.ones(int(counts.sum())))
        for kind, drawn, own_weights, wanted in (
            (self.trials, trials, trials.effective, ~settled),
            (self.counted, draws, draws.counted, draws.trusted),
        ):
            for generated in kind:
                rows = wanted[generated.frames.windows]
                used.append((generated.frames.windows[rows], generated.frames.cvs[rows]))
            weights.append(own_weights[wanted[drawn.windows]])
        own, cvs = (np.concatenate(columns) for columns in zip(*used, strict=True))
        weight = np.concatenate(weights)
        windows, columns = np.unique(own, return_inverse=True)
        sizes = np.bincount(columns, weight)
        start = np.nan_to_num(self.free_energies[windows], nan=0.0)
        held = (prior[windows], error[windows]) if np.isfinite(prior[windows]).any() else (None, None)
        f = weighted_mbar(bias_terms(cvs, self.grid, windows), weight, sizes, start, *held)
        self.free_energies = np.full(len(self.grid.centers), np.nan)
        self.free_energies[windows] = f

    def draw_weights(self) -> Weights:
        """Return the importance weights of the draws of all rounds that count."""
        return Weights(self.counted, len(self.grid.centers))

    def trial_weights(self) -> Weights:
        """Return the importance weights of the trials by which windows were opened."""
        return Weights(self.trials, len(self.grid.centers))

    def chain_of(self, *sources: int) -> Frames:
        """Return the chain's frames of these sources after burn-in, in time order."""
        ends = np.cumsum([0, *(len(part) for part in self.chain)])
        late = [
            np.arange(start, start + len(part)) >= self.burn_in for start, part in zip(ends, self.chain, strict=False)
        ]
        rows = [np.isin(part.source, sources) & after for part, after in zip(self.chain, late, strict=True)]
        return Frames.gather(self.chain, rows)

    def chain_of_surface(self) -> Frames:
        """Return the equilibrium chain's frames of the windows below the surface's height."""
        heights = (self.free_energies - np.nanmin(self.free_energies)) / self.beta
        chain = self.chain_of(MD, INJECTED)
        return chain[heights[chain.windows] <= self.options.surface_height]

    def leave_out_what_was(self) -> None:
        """Take what has been simulated and drawn so far out of all estimates: it has trained the next generator.

        Called once, after the first round. Its generator knows the windows from a few frames, and the heavy tail of its
        weights would outlive many good draws; that it is left out is decided beforehand, not by what it gave.
        """
        self.burn_in, self.learnt_from = sum(len(part) for part in self.chain), len(self.rounds)

    @property
    def counted(self) -> list[Draws]:
        """The rounds whose draws estimates are made of."""
        return self.rounds[self.learnt_from :]

    def active_windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sound windows below the explored height, int64, and their shares of what is generated.

        Where basins below `surface_height` are joined by higher windows only, up to the lowest ridges that join them.
        """
        heights = (self.free_energies - np.nanmin(self.free_energies)) / self.beta
        sound = [w for w in sorted(self.walkers) if not self.walkers[w].failure]
        ceiling = self._joining_height(heights, sound)
        windows = np.array([w for w in sound if heights[w] <= ceiling])
        # 5 kJ/mol more: the flank of a window reaches bins that are lower than its centre
        low = heights[windows] <= self.options.surface_height + 5.0
        shares = np.where(low, 1.0, self.options.outside_share)
        return windows, shares / shares.sum()

    def share_of(self, windows: np.ndarray, unvisited: list[int]) -> float:
        """Return the share of the ensemble that may lie in windows, as far as is known: by their own rough free
        energies, and of unvisited ones by that of their lowest neighbour."""
        weight = np.exp(np.nanmin(self.free_energies) - self.free_energies)
        beside = [np.nanmax([0.0, *weight[self.grid.neighbours(w)]]) for w in unvisited]
        lost = float(np.nansum(weight[windows]) + np.sum(beside))
        return lost / (float(np.nansum(weight)) + float(np.sum(beside)))

    def _joining_height(self, heights: np.ndarray, sound: list[int]) -> float:
        """Return the height, kJ/mol, up to which windows join those below `surface_height` as far as any do; no less
        than `explore_height`."""
        known = sorted((w for w in sound if np.isfinite(heights[w])), key=lambda w: heights[w])
        joined, low, ceiling = DisjointSet(known), set[int](), self.options.explore_height
        for window in known:  # from the lowest up: `low` names the pieces that reach below the surface's height
            if heights[window] <= self.options.surface_height:
                low.add(window)
            for other in self.grid.neighbours(window):
                if other in joined and heights[other] <= heights[window]:
                    joined.merge(window, other)
            pieces = {joined[w] for w in low}
            if len(pieces) < len(low) and heights[window] > self.options.explore_height:
                ceiling = heights[window]
            low = pieces
        return float(ceiling)

    def hidden_states(self) -> HiddenStates:
        """Compare the overlapping windows of the surface: do they agree on torsions, handedness and the energy?"""
        chain = self.chain_of_surface()
        if len(np.unique(chain.windows)) < 2:
            return HiddenStates((), np.zeros((0, 2), dtype=np.int64), ())
        return hidden_states_in_frames(chain, self.grid, self.molecule)

    def describe(self, window: int) -> str:
        """Return a window's centre in words."""
        parts = []
        for cv, value in zip(self.molecule.cvs, self.grid.centers[window], strict=True):
            parts.append(
                f"{cv.name} = {np.degrees(value):.0f}°" if cv.unit == "rad" else f"{cv.name} = {value:.3g} {cv.unit}"
            )
        return ", ".join(parts)

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed.spawn(1)[0])


def _grid(molecule: MolecularSystem, options: SamplerOptions, target_k: float) -> WindowGrid:
    ladder = (target_k, *options.ladder) if options.ladder else ()
    return WindowGrid.over(molecule.cvs, molecule.temperature_k, ladder, molecule.stiff_cvs)


def _z_matrix(molecule: MolecularSystem) -> ZMatrix | None:
    """Return the molecule's Z-matrix; None for particles that are tied to a place."""
    if molecule.tied:
        return None
    torsions = [cv.atoms if isinstance(cv, Torsion) else None for cv in molecule.cvs]
    return build_z_matrix(molecule.n_atoms, molecule.bonds, molecule.masses, molecule.constraints, torsions)


def refuse_unfit(generator: Generator, molecule: MolecularSystem, options: SamplerOptions) -> None:
    """Refuse a generator that a run of `molecule` cannot begin with: its masses and constraints enter the weights.

    Raises
    ------
    InputError
        for one of another molecule, or with other labels.
    """
    given = generator.label_space
    _refuse_other_molecule(generator.representation, molecule)
    wanted = _grid(molecule, options, molecule.temperature_k).label_space
    same = (given.periods, given.thermal) == (wanted.periods, wanted.thermal)
    if not same or not np.allclose([given.minimum, given.maximum], [wanted.minimum, wanted.maximum]):
        raise InputError(
            "the generator has other labels than this run: give it the CVs, ranges and ladder that it was trained with"
        )


def _refuse_other_molecule(own: Representation | CartesianRepresentation, molecule: MolecularSystem) -> None:
    z_matrix = _z_matrix(molecule)
    if z_matrix is None or isinstance(own, CartesianRepresentation):
        if z_matrix is not None or isinstance(own, Representation) or own.n_atoms != molecule.n_atoms:
            raise InputError(f"the generator is of another system than {molecule.name}")
        return
    inverse = np.zeros(molecule.n_atoms)
    inverse[molecule.masses > 0] = 1 / molecule.masses[molecule.masses > 0]
    if own.n_atoms != molecule.n_atoms or not np.allclose(own.inverse_masses, inverse):
        raise InputError(f"the generator is of another molecule than {molecule.name}: the masses differ")
    pairs = np.array([(i, j) for i, j, _ in molecule.constraints], dtype=np.int64)
    same = np.array_equal(own.constraints, pairs.reshape(-1, 2)) and all(
        np.array_equal(getattr(own.z_matrix, name), getattr(z_matrix, name))
        for name in ("order", "references", "cv_torsions")
    )
    if not same or not np.allclose(own.z_matrix.constant_bonds, z_matrix.constant_bonds, equal_nan=True):
        raise InputError(
            f"the generator is not of {molecule.name} with these CVs: bonds, constraints or the torsions that are CVs "
            "differ"
        )
