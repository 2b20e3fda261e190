"""`ScoreSampler`: the loop, and what a user's script calls."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from operator import index
from typing import Any

import numpy as np
from openmm import app, unit

from .campaign import Campaign, Plan, Weighed, refuse_unfit
from .confined import ConfinedTorsion, confined_torsions
from .cvs import CollectiveVariable
from .doubts import left_out, warn_of
from .dynamics import force_groups
from .executors import SerialExecutor, make_executor, one_thread
from .explore import explore, explore_ladder, simulate_to_learn, unreached
from .frames import BURN_IN, INJECTED, MD, Frames
from .free_energy import Estimate, Method, Surface, estimate
from .generator import Generator, Samples
from .hidden import HiddenStates
from .importance import Draws, effective_sample_size, pareto_shape
from .inject import metropolis_chain
from .journal import Journal, JournalExecutor
from .lifting import Lifted, ScoreLifting
from .mbar import mbar_free_energies
from .options import SamplerOptions
from .platforms import PlatformOptions
from .preflight import describe_executor, refuse_copies
from .same_simulation import SameSimulation
from .simulate import Segment
from .system import MolecularSystem, bin_counts
from .unbiased import LabelDistribution, MoveStatistics, UnbiasedMoves
from .units import TEMPERATURES_K, InputError, SamplingError, check_range, strip_units

__all__ = ["ScoreSampler"]

RESEED_DRAWS = 64
LIFT_DRAWS, LEAST_LIFTED = 256, 4.0
VISIT_PROPOSALS = 4
COMPARED = 8
"""Configurations at which a user's simulation and the sampler's molecule are compared."""
DOUBT = 3.0
"""Windows that disagree on something hidden get so many times the share of the others in the next round."""
FULL_TRAINING = 250_000
"""Force evaluations whose data is worth all of the training steps; of less, the share is the square root."""


class ScoreSampler:
    """Sample a molecule over its collective variables with a score model and exact Metropolis moves.

    Umbrella windows spread over CV space from the starting structure; a conditional score model learns the windows'
    ensembles; configurations that it generates enter the windows through a Metropolis test with the model's exact
    density, so that the result does not depend on how good the model is (only the cost does). After Crabtree,
    Bello-Rivas & Kevrekidis, Chaos 34, 053110 (2024).

    >>> sampler = ScoreSampler(simulation, [Torsion("phi", (4, 6, 8, 14)), Torsion("psi", (6, 8, 14, 16))], seed=1)
    >>> sampler.run(force_evaluations=250_000)
    >>> surface = sampler.surface(bins=36)  # .free_energy, .std_error (kJ/mol), .edges
    >>> sampler.reseed(simulation, {"phi": 1.0, "psi": -0.7})  # the user's own context, at that CV value
    >>> sampler.step(simulation, 100_000)  # MD with exact generator moves in between

    The user's system, reporters and parameters are read and left as they are; `run` works on copies.

    Parameters
    ----------
    simulation : an `openmm.app.Simulation` with positions, or a `MolecularSystem`
    cvs : one to three collective variables (those of the `MolecularSystem` if one is given)
    temperature : Quantity or K; needed where the integrator has no thermostat
    seed : of everything random
    workers : processes for simulation and generation; None for the processors there are, 0 to stay in this process
    executor : any `concurrent.futures.Executor` instead, with `workers` workers; it is not shut down
    platform : `PlatformOptions`: OpenMM platform, precision, deterministic forces; by default the fastest here
    options : `SamplerOptions`
    generator : one to begin with, from `train_from_frames` or an earlier run of the same molecule and CVs; windows are
        then tried with it from the first. Results are as exact with it as without; a bad one costs force evaluations
    starts : float64, shape (n, n_atoms, 3), nm or a Quantity; configurations besides the simulation's own for windows
        to start from, from any trajectory of the molecule (a hot one, say): of those nearest to a window the closest
        to its centre. They are equilibrated there and are in no estimate
    progress : called with one line of text now and then
    on_round : called with this sampler before the exploration, after it, and after every round
    on_set_aside : called with a `Segment` that was given up, the reason and the temperature in K, see `save_failed`
    journal : where the results of the units of a phase are kept until `on_round` has saved what came of them

    Attributes
    ----------
    campaign : the state of the run
    history : one dict per round: cost, acceptance, ESS, coverage, error

    Raises
    ------
    InputError
        where the simulation cannot be used; one sentence that says what to change.
    """

    def __init__(
        self,
        simulation: app.Simulation | MolecularSystem,
        cvs: Sequence[CollectiveVariable] | None = None,
        temperature: Any = None,
        *,
        seed: int = 0,
        workers: int | None = None,
        executor: Executor | None = None,
        platform: PlatformOptions | None = None,
        options: SamplerOptions | None = None,
        generator: Generator | None = None,
        starts: Any = None,
        progress: Callable[[str], None] | None = None,
        on_round: Callable[[ScoreSampler], None] | None = None,
        on_set_aside: Callable[[Segment, str, float], None] | None = None,
        journal: Journal | None = None,
    ) -> None:
        if not isinstance(simulation, MolecularSystem | app.Simulation):
            raise InputError(f"an openmm.app.Simulation is needed, got {type(simulation).__name__}")
        if isinstance(simulation, MolecularSystem):
            if cvs is not None or temperature is not None:
                raise InputError("a MolecularSystem has its own CVs and temperature: give neither")
            self.molecule = simulation
        else:
            if cvs is None:
                raise InputError("give one to three collective variables")
            self.molecule = MolecularSystem.from_simulation(simulation, cvs, temperature)
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or index(seed) < 0:
            raise InputError(f"the seed must be a whole number, 0 or more, got {seed!r}")
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        if self.workers < 0:
            raise InputError(f"workers must be 0 or more, got {workers}")
        self.seed = index(seed)
        self.options = options or SamplerOptions()
        for temperature in self.options.ladder:
            check_range("a temperature of the ladder (K)", temperature, *TEMPERATURES_K)
        if self.options.ladder and self.options.ladder[0] <= self.molecule.temperature_k:
            raise InputError(
                f"the ladder's temperatures must lie above {self.molecule.temperature_k:g} K, "
                f"got {self.options.ladder[0]:g} K"
            )
        if generator is not None:
            refuse_unfit(generator, self.molecule, self.options)
        self.progress, self.on_round, self.journal = progress or (lambda line: None), on_round, journal
        self._given_executor, self._given_generator = executor, generator
        shape = self.molecule.positions.shape
        self._starts = (
            np.empty((0, *shape)) if starts is None else np.asarray(strip_units(starts, unit.nanometer), float)
        )
        if self._starts.ndim != 3 or self._starts.shape[1:] != shape or not np.isfinite(self._starts).all():
            raise InputError(f"starts must be numbers of shape (n, {shape[0]}, 3) in nm, got {self._starts.shape}")
        self.platform, self.on_set_aside = platform, on_set_aside
        self._seeds = np.random.SeedSequence(seed)
        self.campaign: Campaign | None = None
        self.history: list[dict[str, Any]] = []
        self.wall_seconds = 0.0
        self._clock = 0.0
        self._hidden: tuple[int, HiddenStates] | None = None
        self._mover: UnbiasedMoves | None = None
        self._same = SameSimulation(self.molecule)
        self._estimates: dict[tuple[Any, ...], Estimate] = {}
        self._mbar: tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    # the loop

    def run(self, force_evaluations: int, target_error: Any = None) -> None:
        """Spend up to `force_evaluations` more: explore, then rounds of training, generation, injection, simulation.

        Ends with a warning where the generator cannot be trusted, where the budget has left windows, and with a
        `HiddenStateWarning` where overlapping windows hold different states, see `hidden_states`, or a torsion has
        stayed in one place in all of them, see `confined_torsions`.

        Parameters
        ----------
        force_evaluations : the budget; a call that was interrupted goes on where it was, within the budget given now
        target_error : Quantity or kJ/mol; end earlier when the surface's RMS standard error is below it

        Raises
        ------
        InputError
            for a budget that is too small to begin with, or a target that is not above zero.
        """
        budget, target_error = self.check_budget(force_evaluations), self.check_target(target_error)
        if self._given_executor is None:
            refuse_copies()
        if self.campaign is None:
            self.campaign = self.new_campaign()
        n_windows = len(self.campaign.grid.centers)
        for line in describe_executor(self._given_executor, self.campaign.platform.name, self.workers, n_windows):
            self.progress(line)
        if self.molecule.stereo.summary():
            self.progress(f"{self.molecule.stereo.summary()}: all samples will have these")
        timed = self.campaign.platform
        speed = timed.steps_per_second.get(timed.name, 0.0)
        if speed > 0:
            self.progress(f"a force evaluation takes {1000 / speed:.2g} ms on {timed.name}")
        cost, o = self.campaign.cost.total, self.options
        if self.campaign.plan.rounds:  # an interrupted call goes on
            self.campaign.plan.end = cost + budget
        else:
            self.campaign.plan = Plan(cost + budget, int(budget * o.explore_share), o.rounds)
            self._clock = time.perf_counter()
            self._tell()
        self._clock = time.perf_counter()
        with self._executor() as executor, one_thread():
            self.campaign.work_on(executor, max(1, self.workers), self.journal)
            try:
                while self.campaign.plan.rounds:
                    self._round(target_error)
            finally:
                self._count_seconds()
                self.campaign.work_on(SerialExecutor(), 1)
        hidden = self.hidden_states()
        if len(hidden.pairs) and not hidden.disagreements:
            self.progress("overlapping windows agree on torsions, handedness and energy")
        warn_of(self.campaign, hidden, self.confined_torsions())
        for line in self._what_was_kept():
            self.progress(line)

    def _what_was_kept(self) -> Iterator[str]:
        """Tell which windows the surface says nothing of, and whether the samples are of the molecule given."""
        campaign = self._begun()
        try:
            estimate = self.estimate()
        except SamplingError:  # nothing has been simulated yet
            return
        unknown = left_out(campaign, estimate.surface.left_out)
        if unknown:
            yield unknown
        if campaign.stereo.names:
            kept = campaign.stereo.kept(estimate.samples.take().positions)
            yield f"{int(kept.sum()):,} of {len(kept):,} samples have the cis/trans states and the handedness given"

    def check_budget(self, force_evaluations: int) -> int:
        """Return a budget as a whole number, or raise `InputError` for one that is too small to begin with."""
        whole = isinstance(force_evaluations, int | float | np.number) and not isinstance(force_evaluations, bool)
        if not whole or int(force_evaluations) != force_evaluations or force_evaluations <= 0:
            raise InputError(f"force_evaluations must be a whole number above zero, got {force_evaluations!r}")
        smallest = 4 * self.options.first_steps
        if force_evaluations < smallest and self.campaign is None:
            raise InputError(
                f"{force_evaluations} force evaluations are too few to begin with: give {smallest} or more"
            )
        return int(force_evaluations)

    def check_target(self, target_error: Any) -> float | None:
        """Return a target as kJ/mol, or raise `InputError` for one that is not above zero."""
        if target_error is None:
            return None
        target = float(strip_units(target_error, unit.kilojoule_per_mole))
        if not target > 0:
            raise InputError(f"the target error must be above 0 kJ/mol, got {target:g}")
        return target

    def _round(self, target_error: float | None) -> None:
        """Explore, train, generate and inject, simulate; each round generates more than the one before."""
        campaign, o = self._begun(), self.options
        self._estimates.clear()  # it holds as many configurations as the campaign: not while there is training to do
        plan = campaign.plan
        if not plan.explored:
            before = campaign.cost.total
            if campaign.hotter and not campaign.walkers:
                explore_ladder(campaign, plan.explore, int(o.ladder_share * (plan.end - before)))
            left = plan.explore - (campaign.cost.total - before)
            if left > 0:
                explore(campaign, left, generate=o.explore_by == "trial")
            plan.explore -= campaign.cost.total - before
            plan.explored = True
            if not campaign.rounds and plan.explore > 0:
                before = campaign.cost.total
                simulate_to_learn(campaign, plan.explore)
                plan.explore -= campaign.cost.total - before
            if plan.rounds == o.rounds:
                self._note("exploration")
                self._tell()
        windows, shares = campaign.active_windows()
        now = (plan.end - campaign.cost.total) / sum(o.growth**k for k in range(plan.rounds))
        learning = self._learning()
        steps = o.md_steps
        if learning:  # dynamics teaches as much as it costs, draws of a poor generator less
            steps = max(steps, int(o.md_share * now) // len(windows) // (o.frame_interval + 1) * o.frame_interval)
        visit = steps + steps // o.frame_interval + 2
        md = min(len(windows), int(o.md_share * now) // visit)
        generated = now - md * visit
        counts = np.floor(shares * generated).astype(np.int64)
        if counts.min() < 1:
            self.progress("the budget is spent before another round")
            plan.rounds = 0
            self._tell()
            return
        if campaign.round:
            more = np.floor(self._more_where_windows_disagree(windows, shares) * generated).astype(np.int64)
            counts = more if more.min() else counts
        if campaign.round == 1 or learning:
            campaign.leave_out_what_was()
        campaign.round += 1
        most = o.training.steps * min(1.0, (plan.end / FULL_TRAINING) ** 0.5)
        campaign.train(max(o.exploration_training_steps, round(most)))
        campaign.refine_ode_steps()
        campaign.generate_and_inject(windows, counts)
        campaign.simulate(campaign.rng().choice(windows, md, replace=False), steps)
        campaign.update_free_energies()
        plan.explored = False
        if not self._learning():
            plan.rounds -= 1
        error = self._note(f"round {campaign.round}")
        if target_error is not None and error < target_error:
            self.progress(f"the error, {error:.2f} kJ/mol, is below the target")
            plan.rounds = 0
        self._tell()

    def _learning(self) -> bool:
        """Return whether the last round's draws are for the next generator only: they are poor, and budget is left.

        Once there are draws of a round before it in the estimates, as when `run` is called again, they stay there.
        """
        campaign = self._begun()
        ess = campaign.ess[np.isfinite(campaign.ess)]
        poor = len(ess) > 0 and float(np.median(ess)) < self.options.learning_ess
        return poor and len(campaign.counted) <= 1 and campaign.cost.total < campaign.plan.end // 2

    def _more_where_windows_disagree(self, windows: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Return the windows' shares of the next draws, larger for those that do not agree with their neighbours."""
        doubtful = np.isin(windows, self.hidden_states().flagged)
        if doubtful.any():
            self.progress(f"{doubtful.sum()} windows disagree with their neighbours and are drawn more often")
        shares = shares * np.where(doubtful, DOUBT, 1.0)
        return shares / shares.sum()

    def _note(self, stage: str) -> float:
        """Append to the history and tell; return the surface's RMS error."""
        self._estimates.clear()
        self._mover = None
        campaign = self._campaign()
        try:
            surface = self.surface(n_bootstrap=20)
            covered = float(np.mean(np.isfinite(surface.free_energy)))
            error = surface.error_below(self.options.surface_height)
        except SamplingError:  # all windows were opened by generated configurations, and none has been simulated yet
            covered, error = 0.0, float("nan")
        asked = np.isfinite(campaign.acceptance)
        record: dict[str, Any] = {
            "stage": stage,
            "force_evaluations": campaign.cost.total,
            "seconds": campaign.cost.simulate_seconds + campaign.cost.train_seconds + campaign.cost.generate_seconds,
            "windows": len(campaign.walkers),
            "covered": covered,
            "error_kj_mol": error,
            "acceptance": float(np.median(campaign.acceptance[asked])) if asked.any() else None,
            "ess": float(np.median(campaign.ess[asked])) if asked.any() else None,
        }
        self.history.append(record)
        acceptance = "" if record["acceptance"] is None else f"acceptance {record['acceptance']:.2f}, "
        self.progress(
            f"{stage}: {record['force_evaluations']:,} force evaluations, {record['windows']} windows, {acceptance}"
            + (f"error {error:.2f} kJ/mol" if np.isfinite(error) else "error unknown")
        )
        return error

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.wall_seconds, self._clock = self.wall_seconds + now - self._clock, now

    def _tell(self) -> None:
        self._count_seconds()
        if self.on_round is not None:
            self.on_round(self)

    def new_campaign(self, platform: str | None = None) -> Campaign:
        """Return the state of a run that has not begun; on the platform given, or else as this sampler was told."""
        chosen = self.platform
        if platform is not None:
            chosen = replace(chosen or PlatformOptions(), name=platform)
        campaign = Campaign(self.molecule, self.options, self._seeds.spawn(1)[0], self.progress, platform=chosen)
        if self.on_set_aside is not None:
            campaign.on_set_aside = self.on_set_aside
        campaign.shared.generator = self._given_generator
        campaign.starts = self._starts
        return campaign

    @property
    def seeds_spawned(self) -> int:
        """How many sources of randomness this sampler has given out; part of the state of a run."""
        return int(self._seeds.n_children_spawned)

    def restore(
        self,
        campaign: Campaign,
        history: list[dict[str, Any]],
        wall_seconds: float,
        spawned: int,
    ) -> None:
        """Take over the state of an interrupted run, randomness included."""
        self._seeds = np.random.SeedSequence(self.seed, n_children_spawned=spawned)
        self.campaign, self.history, self.wall_seconds = campaign, history, wall_seconds

    # results

    def surface(
        self, bins: int | Sequence[int] | None = None, method: Method = "combined", n_bootstrap: int = 50
    ) -> Surface:
        """Return the free-energy surface with standard errors; see `estimate` for the methods.

        Parameters
        ----------
        bins : per CV, or one number for all; None for those of the system
        method : "combined", "mbar" (the windows' chains alone) or "generator" (its own densities alone)
        """
        return self.estimate(bins, method, n_bootstrap).surface

    def estimate(
        self, bins: int | Sequence[int] | None = None, method: Method = "combined", n_bootstrap: int = 50
    ) -> Estimate:
        """Return window free energies, surface and weighted configurations by one of three methods.

        Before the first round there are no draws, and "combined" is MBAR over the exploration, marked by nothing but
        its large errors; afterwards what came before the first injection is left out as burn-in.
        """
        campaign = self._campaign()
        shape = self.molecule.bins if bins is None else bin_counts(bins, self.molecule.cvs)
        if method not in ("combined", "mbar", "generator"):
            raise InputError(f"method must be 'combined', 'mbar' or 'generator', got {method!r}")
        key = (shape, method, n_bootstrap)
        if key not in self._estimates:
            self._estimates.clear()  # it holds as many configurations as the campaign does: one at a time
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, campaign.cost.total]))
            edges = [np.linspace(cv.minimum, cv.maximum, n + 1) for cv, n in zip(self.molecule.cvs, shape, strict=True)]  # type: ignore[arg-type]
            names, units = [cv.name for cv in self.molecule.cvs], [cv.unit for cv in self.molecule.cvs]
            chain: Frames | None
            draws: list[Draws] = campaign.counted
            mbar = None
            if not campaign.rounds:
                if method == "generator":
                    raise InputError("the generator has drawn nothing yet: give run() a larger budget")
                chain, mbar, method = campaign.chain_of(BURN_IN, MD), campaign.free_energies, "mbar"
                if not len(chain):
                    raise SamplingError("there has been no simulation and no round yet: give run() a larger budget")
            elif method == "mbar":
                chain, draws, mbar = campaign.chain_of(MD, INJECTED), [], self.mbar()[0]
            else:
                chain = campaign.chain_of(MD, INJECTED) if method == "combined" else None
            result = estimate(
                chain, draws, campaign.grid, edges, names, units,
                method=method, mbar=mbar, start=campaign.free_energies, n_bootstrap=n_bootstrap, rng=rng,
            )  # fmt: skip
            unknown = np.flatnonzero(np.isnan(result.free_energies))
            self._estimates[key] = replace(
                result,
                surface=replace(result.surface, left_out=tuple(campaign.describe(int(w)) for w in unknown)),
                missing=campaign.share_of(unknown, unreached(campaign)[1]),
            )
        return self._estimates[key]

    def mbar(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `mbar_free_energies` of the windows' equilibrium chains (MD and injected states)."""
        campaign = self._campaign()
        if self._mbar is None or self._mbar[0] != campaign.cost.total:
            guess = campaign.draw_weights().free_energies()[0]
            result = mbar_free_energies(campaign.chain_of(MD, INJECTED), campaign.grid, guess)
            self._mbar = (campaign.cost.total, result)
        return self._mbar[1]

    def hidden_states(self) -> HiddenStates:
        """Return where overlapping windows disagree on a torsion, a handedness or the energy; see `find_hidden_states`.

        `disagreements` has the pairs of windows, `blamed()` the windows that stand against the others; window k's
        centre is `campaign.describe(k)`. A state that all windows have missed is not seen.
        """
        campaign = self._campaign()
        if self._hidden is None or self._hidden[0] != campaign.cost.total:
            self._hidden = (campaign.cost.total, campaign.hidden_states())
        return self._hidden[1]

    def confined_torsions(self) -> tuple[ConfinedTorsion, ...]:
        """Return torsions that stayed in one place in all windows, those of a ladder too; see `confined_torsions`."""
        campaign = self._campaign()
        hot = [part.positions for level in campaign.hotter for part in level.chain]
        return confined_torsions(self.molecule, campaign.chain_of_surface().positions, *hot)

    @property
    def generator(self) -> ScoreLifting:
        """The latest generator, with `lift` and `restrict`."""
        campaign = self._campaign()
        if campaign.generator is None:
            raise InputError("there is no generator yet: call run() with a larger budget first")
        known = [part.cvs for part in (*campaign.chain, *(draws.frames for draws in campaign.rounds))]
        return ScoreLifting(self.molecule, campaign.grid, np.concatenate(known), campaign.generator)

    def lift(self, values: Mapping[str, Any], n: int) -> Lifted:
        """Return `n` configurations of the umbrella ensemble at CV values, each accepted by exact Metropolis tests.

        An independence sampler over the generator's draws begins at one chosen by weight from `LIFT_DRAWS`. The
        largest weight among them in units of the mean, or 3/ESS where that is more, is how many proposals pass before
        the first state is kept and between one and the next. The evaluations of energy count in no budget. To start
        unbiased dynamics at a CV value, or bursts for `estimate_drift_and_diffusion`.

        The tests are exact; that a finite chain has forgotten its start is not. Weights whose tail is too heavy (Pareto
        k̂, see `Weights.trusted`) are refused, but a mode that the generator draws less than once in some hundreds is
        not seen by that.

        Parameters
        ----------
        values : a value for every CV by name, Quantity or in the CV's unit

        Raises
        ------
        InputError
            for missing or unknown CVs, values outside their range, n below 1, or where the weights cannot be trusted.
        """
        if n < 1:
            raise InputError(f"the number of configurations must be 1 or more, got {n}")
        lifting, label = self.generator, self._label(values)
        rng = np.random.default_rng(self._seeds.spawn(1)[0])
        drawn, weighed = self._weighed_draws(label, LIFT_DRAWS, rng)
        share = effective_sample_size(weighed.log_weights)
        self._refuse_untrusted(weighed.log_weights, values, tail=False)  # too few to fit a tail to
        p = np.exp(weighed.log_weights - weighed.log_weights.max())
        first, apart = rng.choice(LIFT_DRAWS, p=p / p.sum()), int(np.ceil(max(3 / share, 1 / p.mean())))
        start = weighed.positions[first], float(drawn.log_density[first]), float(weighed.log_weights[first])
        drawn, weighed = self._weighed_draws(label, (n + 1) * apart, rng)
        self._refuse_untrusted(weighed.log_weights, values, tail=True)
        state = metropolis_chain(start[2], weighed.log_weights, rng)[1][2 * apart - 1 :: apart]
        positions = np.where(state[:, None, None] < 0, start[0], weighed.positions[state])
        log_density = np.where(state < 0, start[1], drawn.log_density[state])
        return Lifted(positions, log_density, label, lifting.effective(label))

    def _label(self, values: Mapping[str, Any]) -> np.ndarray:
        """Return CV values given by name as a label within the CVs' ranges, or raise `InputError`."""
        label = self.generator.label(values)
        for cv, value in zip(self.molecule.cvs, label, strict=True):
            if not cv.minimum <= value <= cv.maximum:
                known = f"{cv.minimum:g} to {cv.maximum:g} {cv.unit}"
                degrees = " (angles are in radians, or Quantities)" if cv.unit == "rad" else ""
                raise InputError(f"{cv.name} = {value:g} lies outside its range from {known}{degrees}")
        return label

    def _refuse_untrusted(self, log_weights: np.ndarray, values: Mapping[str, Any], tail: bool) -> None:
        n, share = len(log_weights), effective_sample_size(log_weights)
        heavy = tail and share < 0.5  # of nearly equal weights the tail does not matter
        if heavy:
            heavy = pareto_shape(log_weights[np.isfinite(log_weights)], n) >= min(1 - 1 / np.log10(n), 0.7)
        if heavy or not share * n >= LEAST_LIFTED:
            raise InputError(
                f"the generator cannot be trusted at {dict(values)}, where {share * n:.0f} of {n} draws are effective "
                "and few of them count for much: choose another place, or call run() with more force evaluations"
            )

    def _weighed_draws(self, label: np.ndarray, n: int, rng: np.random.Generator) -> tuple[Samples, Weighed]:
        campaign = self._begun()
        assert campaign.generator is not None
        labels = campaign.grid.labels(label[None])
        drawn = campaign.generator.sample(labels, np.array([n]), int(rng.integers(2**63)))
        return drawn, campaign.weigh(drawn, np.repeat(label[None], n, axis=0))

    # in the user's own simulation

    def reseed(self, simulation: app.Simulation, values: Mapping[str, Any]) -> float:
        """Put the simulation at CV values: positions drawn from the umbrella ensemble there, velocities anew.

        The configuration is drawn from `RESEED_DRAWS` generated ones by their exact importance weights, so it is a
        sample of π_c up to the error of a finite number of draws: its CVs scatter about the values by the width of the
        umbrella (11° for torsions by default). System, parameters, reporters, step count and time stay as they are.

        Returns
        -------
        the effective number of those draws; below ten or so, calls at one place return the same few configurations

        Parameters
        ----------
        values : a value for every CV by name, Quantity or in the CV's unit

        Raises
        ------
        InputError
            for missing or unknown CVs, another molecule, temperature or set of constraints, forces that depend on place
            or orientation (see `SameSimulation`), or where fewer than two draws are effective: nothing is changed then.

        Warns
        -----
        UserWarning
            where the simulation's energies differ from the sampler's by more than a constant; the draws are weighed by
            the simulation's own.
        """
        self._check_is_ours(simulation, dynamics=False)
        mover = self._moves()
        label = self._label(values)
        groups = force_groups(simulation.integrator)
        rng = np.random.default_rng(self._seeds.spawn(1)[0])
        configuration, effective = mover.draw_at(simulation.context, groups, label, RESEED_DRAWS, rng)
        if configuration is None:
            raise InputError(
                f"the generator cannot be trusted at {dict(values)}, {effective:.1f} of {RESEED_DRAWS} draws being "
                "effective: choose another place, or call run() with more force evaluations"
            )
        mover.place(simulation.context, groups, configuration, rng)
        return effective

    def step(self, simulation: app.Simulation, steps: int, interval: int = 500) -> MoveStatistics:
        """Run `steps` of the user's simulation with exact generator moves after every `interval`; it stays unbiased.

        Each visit offers `VISIT_PROPOSALS` configurations; see `UnbiasedMoves` for why the unbiased ensemble is left
        invariant. Reporters see ordinary steps. Returns the statistics of this call's moves.

        Raises
        ------
        InputError
            for a simulation of another molecule, at another temperature or at none, with another set of constraints, or
            with forces that depend on place or orientation; see `SameSimulation`.

        Warns
        -----
        UserWarning
            where the simulation's energies differ from the sampler's by more than a constant: the ensemble that is left
            invariant is the simulation's own.
        """
        if steps < 0 or interval < 1:
            raise InputError(f"steps must be 0 or more and interval 1 or more, got {steps} and {interval}")
        self._check_is_ours(simulation, dynamics=True)
        mover = self._moves()
        mover.statistics = MoveStatistics()
        groups = force_groups(simulation.integrator)
        rng = np.random.default_rng(self._seeds.spawn(1)[0])
        done = 0
        with one_thread():
            while done < steps:
                stretch = min(interval, steps - done)
                simulation.step(stretch)
                done += stretch
                if stretch == interval:
                    mover.visit(simulation.context, groups, VISIT_PROPOSALS, rng)
        return mover.statistics

    def _check_is_ours(self, simulation: app.Simulation, *, dynamics: bool) -> None:
        """Refuse a simulation of another molecule or ensemble than this sampler's; see `SameSimulation`."""
        chain = self._campaign().chain[-1].positions
        self._same.check(simulation, chain[:: -(-len(chain) // COMPARED)], dynamics=dynamics)

    def _moves(self) -> UnbiasedMoves:
        campaign = self._campaign()
        if campaign.generator is None or not campaign.rounds:
            raise InputError("there is no generator yet: call run() with a larger budget first")
        if self._mover is None:
            surface = self.surface()
            windows, _ = campaign.active_windows()
            labels = LabelDistribution.from_surface(surface.free_energy, surface.edges, campaign.grid, windows)
            self._mover = UnbiasedMoves(self.molecule, campaign.grid, campaign.generator, labels)
        return self._mover

    def _begun(self) -> Campaign:
        assert self.campaign is not None
        return self.campaign

    def _campaign(self) -> Campaign:
        if self.campaign is None or not self.campaign.chain:
            raise InputError("nothing has been sampled yet: call run() first")
        return self.campaign

    @contextlib.contextmanager
    def _executor(self) -> Iterator[Executor]:
        with contextlib.ExitStack() as stack:
            given = self._given_executor
            executor = stack.enter_context(make_executor(self.workers)) if given is None else given
            yield executor if self.journal is None else JournalExecutor(executor, self.journal)
