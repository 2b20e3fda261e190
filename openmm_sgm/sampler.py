"""`ScoreSampler`: the loop, and what a user's script calls."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from openmm import app, unit

from .campaign import Campaign, SamplerOptions
from .cvs import CollectiveVariable
from .executors import make_executor
from .frames import Frames
from .free_energy import Surface
from .system import MolecularSystem
from .unbiased import LabelDistribution, MoveStatistics, UnbiasedMoves
from .units import InputError, strip_units

__all__ = ["ScoreSampler"]

RESEED_DRAWS = 64
VISIT_PROPOSALS = 4


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
    executor : any `concurrent.futures.Executor` instead; it is not shut down
    options : `SamplerOptions`
    progress : called with one line of text now and then
    on_round : called with this sampler after the exploration and after every round

    Attributes
    ----------
    campaign : the state of the run
    history : one dict per round: cost, acceptance, ESS, coverage, error
    moves : what `step` proposed and accepted

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
        options: SamplerOptions | None = None,
        progress: Callable[[str], None] | None = None,
        on_round: Callable[[ScoreSampler], None] | None = None,
    ) -> None:
        if isinstance(simulation, MolecularSystem):
            if cvs is not None or temperature is not None:
                raise InputError("a MolecularSystem has its own CVs and temperature: give neither")
            self.molecule = simulation
        else:
            if cvs is None:
                raise InputError("give one to three collective variables")
            self.molecule = MolecularSystem.from_simulation(simulation, cvs, temperature)
        if not isinstance(seed, int) or seed < 0:
            raise InputError(f"the seed must be a whole number, 0 or more, got {seed!r}")
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        if self.workers < 0:
            raise InputError(f"workers must be 0 or more, got {workers}")
        self.seed = seed
        self.options = options or SamplerOptions()
        self.progress, self.on_round = progress or (lambda line: None), on_round
        self._given_executor = executor
        self._seeds = np.random.SeedSequence(seed)
        self.campaign: Campaign | None = None
        self.history: list[dict[str, Any]] = []
        self.wall_seconds = 0.0
        self.moves = MoveStatistics()
        self._mover: UnbiasedMoves | None = None
        self._cached_surface: dict[tuple[Any, ...], Surface] = {}

    # the loop

    def run(self, force_evaluations: int, target_error: Any = None) -> None:
        """Spend up to `force_evaluations` more: explore, then rounds of training, generation, injection, simulation.

        Parameters
        ----------
        target_error : Quantity or kJ/mol; end earlier when the surface's RMS standard error is below it

        Raises
        ------
        InputError
            for a budget that is too small to begin with.
        """
        if isinstance(force_evaluations, bool) or int(force_evaluations) != force_evaluations or force_evaluations <= 0:
            raise InputError(f"force_evaluations must be a whole number above zero, got {force_evaluations!r}")
        if target_error is not None:
            target_error = strip_units(target_error, unit.kilojoule_per_mole)
        started = time.perf_counter()
        with self._executor() as executor:
            try:
                self._loop(int(force_evaluations), target_error, executor)
            finally:
                self.wall_seconds += time.perf_counter() - started

    def _loop(self, budget: int, target_error: float | None, executor: Executor) -> None:
        chunks = max(1, self.workers)
        if self.campaign is None:
            self.campaign = Campaign(
                self.molecule, self.options, self._seeds.spawn(1)[0], executor, chunks, self.progress
            )
        campaign, o = self.campaign, self.options
        campaign.executor, campaign.chunks = executor, chunks
        end = campaign.cost.total + budget
        smallest = 4 * o.first_steps
        if budget < smallest:
            raise InputError(f"{budget} force evaluations are too few to begin with: give {smallest} or more")
        campaign.explore(int(budget * o.explore_share))
        self._note("exploration")
        for k in range(o.rounds):
            campaign.round += 1
            windows = campaign.active_windows()
            md = len(windows) * (o.md_steps + o.md_steps // o.frame_interval + 1)
            left = end - campaign.cost.total - md * (o.rounds - k)
            share = left * 2**k // (2**o.rounds - 2**k)
            per_window = share // len(windows)
            if per_window < 1:
                self.progress("the budget is spent before another round")
                campaign.round -= 1
                break
            campaign.train()
            campaign.refine_ode_steps()
            campaign.generate_and_inject(windows, np.full(len(windows), per_window))
            campaign.simulate(windows, o.md_steps)
            campaign.update_free_energies()
            error = self._note(f"round {campaign.round}")
            if target_error is not None and error < target_error:
                self.progress(f"error {error:.2f} kJ/mol is below the target")
                break

    def _note(self, stage: str) -> float:
        """Append to the history and tell; return the surface's RMS error."""
        self._cached_surface.clear()
        record = self._summary(stage)
        self.history.append(record)
        self.progress(
            f"{stage}: {record['force_evaluations']:,} force evaluations, {record['windows']} windows, "
            f"acceptance {record['acceptance']:.2f}, error {record['error_kj_mol']:.2f} kJ/mol"
        )
        if self.on_round is not None:
            self.on_round(self)
        return float(record["error_kj_mol"])

    @contextlib.contextmanager
    def _executor(self) -> Iterator[Executor]:
        if self._given_executor is not None:
            yield self._given_executor
        else:
            with make_executor(self.workers) as executor:
                yield executor
