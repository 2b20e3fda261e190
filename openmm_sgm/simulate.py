"""Molecular dynamics of umbrella windows and free walkers, from given configurations, with every evaluation counted.

A walker that blows up, or turns a bond or centre that it has to keep, is started again gently, and set aside with the
reason if it does so again; the others go on.
Those whose worker died, hung or sent nothing usable are done once more, one by one, from the same seeds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import openmm

from .engine import Blowup, Engine, MDSettings, copy_vectors, engine_for, refuse_blowup, refuse_changed
from .executors import Pace, SerialExecutor, UnitCounts, run_safely

__all__ = ["Evaluations", "MDSettings", "Segment", "SegmentResult", "evaluate", "evaluate_safely", "run_segments"]

EVALUATION_PIECES = 8
"""A work list of evaluations whose worker died is done again in so many."""
PULL_INCREMENTS = 16
QUENCH_STEPS = 200
GENTLE_FACTOR = 4
"""A retried walker is pulled and equilibrated with a time step shorter, and step counts longer, by this factor."""


@dataclass(frozen=True)
class Segment:
    """One stretch of one walker: pull if asked, equilibrate, then run and store frames.

    Attributes
    ----------
    walker : the caller's name for the walker
    positions : float64, shape (n_atoms, 3), nm; constraints and virtual sites are put right before the start
    velocities : float64, shape (n_atoms, 3), nm/ps; None to draw them from the Maxwell-Boltzmann distribution (where
        the integrator has any)
    center : float64, shape (n_cvs,); the umbrella's centre
    force_constants : float64, shape (n_cvs,), kJ/mol per CV unit squared; zeros for a free walker
    pull_from : float64, shape (n_cvs,); the centre moves from here to `center` on a straight line during the pull. For
        a periodic CV give it unwrapped, so that `center - pull_from` is the path meant. None when `pull_steps` is 0
    pull_steps, equilibration_steps : integration steps without frames
    steps : integration steps with a frame after every `frame_interval` of them
    seed : non-negative; the segment's own source of velocities and noise
    relax : begin with a descent, and equilibrate with a shorter time step, as a walker that is started again does
    """

    walker: int
    positions: np.ndarray
    velocities: np.ndarray | None
    center: np.ndarray
    force_constants: np.ndarray
    pull_from: np.ndarray | None
    pull_steps: int
    equilibration_steps: int
    steps: int
    frame_interval: int
    seed: int
    relax: bool = False

    def __post_init__(self) -> None:
        cvs = np.shape(self.center)
        if len(cvs) != 1 or np.shape(self.force_constants) != cvs:
            raise ValueError(
                f"center and force_constants must have one shape (n_cvs,), got {cvs} and "
                f"{np.shape(self.force_constants)}"
            )
        if (self.pull_from is None) != (self.pull_steps == 0):
            raise ValueError(f"pull_from goes with pull_steps, got {self.pull_from} and {self.pull_steps}")
        if self.pull_from is not None and np.shape(self.pull_from) != cvs:
            raise ValueError(f"pull_from must have the shape of center, {cvs}, got {np.shape(self.pull_from)}")
        if min(self.pull_steps, self.equilibration_steps, self.steps, self.seed) < 0:
            raise ValueError("pull_steps, equilibration_steps, steps and seed must not be negative")
        if self.frame_interval < 1 or self.steps % self.frame_interval:
            raise ValueError(f"steps must be a multiple of frame_interval, got {self.steps} and {self.frame_interval}")

    @property
    def planned_steps(self) -> int:
        return self.pull_steps + self.equilibration_steps + self.steps


@dataclass(frozen=True)
class SegmentResult:
    """What became of a `Segment`.

    Attributes
    ----------
    walker : the segment's
    positions, energies, forces : float64, shapes (m, n_atoms, 3) in nm, (m,) in kJ/mol, (m, n_atoms, 3) in kJ/mol/nm;
        the frames and their unbiased potential. None of a failed segment's frames is kept
    final_positions, final_velocities : float64, shape (n_atoms, 3), nm and nm/ps; where to go on. After a failure the
        segment's own start and None. Brownian dynamics has no velocities: None
    force_evaluations : integration steps, plus one per stored frame, plus one where velocities are drawn, plus one at
        the start and one after the pull and the equilibration (where there are any) to see whether the walker is sound;
        a retry adds its own and the descent's. When a worker dies or an exception is raised in the middle of steps,
        those asked for are counted, and what is done again counts again
    failure : why the segment was set aside, else None
    retries : 0, or 1 when it was started again gently
    """

    walker: int
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    final_positions: np.ndarray
    final_velocities: np.ndarray | None
    force_evaluations: int
    failure: str | None
    retries: int


class Evaluations(NamedTuple):
    """Energies (n,), kJ/mol, and forces (n, n_atoms, 3), kJ/mol/nm, NaN where not finite; where they are not known
    because the evaluation was given up (bool, shape (n,)), which says nothing of the configuration; and how many
    evaluations there were: n, and one more for each energy that was not finite at first."""

    energies: np.ndarray
    forces: np.ndarray
    lost: np.ndarray
    force_evaluations: int


def run_segments(
    settings: MDSettings,
    segments: Sequence[Segment],
    executor: Executor,
    workers: int,
    pace: Pace | None = None,
    counts: UnitCounts | None = None,
) -> list[SegmentResult]:
    """Run all segments and return their results in order.

    Segments are shared out over work lists of near-equal length, some for each worker as `pace` says: seconds of one
    worker for a step; one list a worker where it is not known. On `Reference` and `CPU` a segment's result depends on
    its seed alone, not on lists, processes or what ran before; only threads on `Reference` share one source of noise.
    On GPUs the noise is not restarted for each segment, since OpenMM would compile the context again: runs there are
    equivalent, not identical.

    Nothing a segment does raises here: failures, a worker's death among them, are named in `SegmentResult.failure`. A
    list whose worker dies, exceeds its time or sends a damaged result is done once more, its segments one by one.

    Raises
    ------
    SamplingError
        when the executor takes no more work.
    """
    costs = [segment.planned_steps for segment in segments]
    lists = _share_out(costs, pace.units(sum(costs), workers) if pace else workers)
    units = [(settings, [segments[index] for index in indices]) for indices in lists]
    counts = counts or UnitCounts()
    answers = run_safely(
        executor,
        _run_chunk,
        units,
        split=lambda unit: [(unit[0], [segment]) for segment in unit[1]],
        check=_refuse_damaged,
        give_up=lambda unit, reason: [_failed(unit[1][0], reason, unit[1][0].planned_steps, retries=0)],
        seconds=None if pace is None else lambda unit: pace.limit(sum(s.planned_steps for s in unit[1])),
        counts=counts,
    )
    in_order: list[SegmentResult] = [None] * len(segments)  # type: ignore[list-item]
    for indices, (chunks, failure) in zip(lists, answers, strict=True):
        for index, result in zip(indices, (result for chunk in chunks for result in chunk), strict=True):
            counts.retried += result.retries
            counts.set_aside += result.failure is not None
            lost = segments[index].planned_steps if failure else 0
            in_order[index] = replace(result, force_evaluations=result.force_evaluations + lost)
    return in_order


def evaluate(
    settings: MDSettings, positions: np.ndarray, executor: Executor | None = None, chunks: int = 1
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the unbiased potential of configurations, with virtual sites placed anew.

    Parameters
    ----------
    positions : float64, shape (n, n_atoms, 3), nm

    Returns
    -------
    energies : float64, shape (n,), kJ/mol; nan where energy or a force is not finite, or not known (see
        `evaluate_safely`)
    forces : float64, shape (n, n_atoms, 3), kJ/mol/nm; nan likewise
    force_evaluations : n, and one more for each energy that was not finite at first
    """
    energies, forces, _, evaluations = evaluate_safely(settings, positions, executor or SerialExecutor(), chunks)
    return energies, forces, evaluations


def evaluate_safely(
    settings: MDSettings,
    positions: np.ndarray,
    executor: Executor,
    workers: int,
    pace: Pace | None = None,
    counts: UnitCounts | None = None,
) -> Evaluations:
    """Evaluate as `evaluate` does; what a worker fails at is done again in pieces, and marked where it fails again.

    An energy that is not finite is a fact of a configuration when it comes out a second time.
    """
    positions = np.asarray(positions, dtype=float)
    result = _evaluate_once(settings, positions, executor, workers, pace, counts or UnitCounts())
    doubtful = np.isnan(result.energies) & ~result.lost & np.isfinite(positions).all(axis=(1, 2))
    if not doubtful.any():
        return result
    again = _evaluate_once(settings, positions[doubtful], executor, workers, pace, counts or UnitCounts())
    for column, new in zip(result[:3], again[:3], strict=True):
        column[doubtful] = new
    return result._replace(force_evaluations=len(positions) + int(doubtful.sum()))


def _evaluate_once(
    settings: MDSettings,
    positions: np.ndarray,
    executor: Executor,
    workers: int,
    pace: Pace | None,
    counts: UnitCounts,
) -> Evaluations:
    n_units = pace.units(len(positions), workers) if pace else max(1, workers)
    parts = [part for part in np.array_split(positions, n_units) if len(part)]
    answers = run_safely(
        executor,
        _evaluate_chunk,
        [(settings, part) for part in parts],
        split=lambda unit: [(unit[0], part) for part in np.array_split(unit[1], EVALUATION_PIECES) if len(part)],
        check=lambda unit, result: _refuse_damaged_energies(unit[1], *result),
        give_up=lambda unit, reason: (np.full(len(unit[1]), np.inf), np.full(unit[1].shape, np.nan)),
        seconds=None if pace is None else lambda unit: pace.limit(len(unit[1])),
        counts=counts,
    )
    pieces = [piece for done, _ in answers for piece in done]
    energies = np.concatenate([np.zeros(0), *(piece[0] for piece in pieces)])
    forces = np.concatenate([np.zeros((0, *positions.shape[1:])), *(piece[1] for piece in pieces)])
    lost = np.isposinf(energies)  # a result has none: NaN stands for every energy that is not finite
    energies[lost] = np.nan
    counts.set_aside += sum(bool(np.isposinf(piece[0]).any()) for piece in pieces)
    return Evaluations(energies, forces, lost, len(positions))


def _refuse_damaged(unit: tuple[MDSettings, list[Segment]], results: list[SegmentResult]) -> None:
    """Raise for results that are not what these segments give: incomplete, or with numbers that are not finite."""
    for segment, result in zip(unit[1], results, strict=True):
        if result.walker != segment.walker:
            raise ValueError(f"a result of walker {result.walker} came back for walker {segment.walker}")
        if result.failure is not None:
            continue
        m, shape = segment.steps // segment.frame_interval, segment.positions.shape
        expected = [
            (result.positions, (m, *shape)),
            (result.energies, (m,)),
            (result.forces, (m, *shape)),
            (result.final_positions, shape),
        ]
        if result.final_velocities is not None:
            expected.append((result.final_velocities, shape))
        elif unit[0].integrator != "brownian":
            raise ValueError("the result has no velocities")
        for array, wanted in expected:
            if array.shape != wanted or not np.isfinite(array).all():
                raise ValueError("the result is incomplete or holds numbers that are not finite")


def _refuse_damaged_energies(positions: np.ndarray, energies: np.ndarray, forces: np.ndarray) -> None:
    if energies.shape != positions.shape[:1] or forces.shape != positions.shape or np.isinf(energies).any():
        raise ValueError("energies or forces are incomplete")


def _run_chunk(unit: tuple[MDSettings, list[Segment]]) -> list[SegmentResult]:
    settings, segments = unit
    engine = engine_for(settings)
    return [_run_segment(engine, segment) for segment in segments]


def _run_segment(engine: Engine, segment: Segment) -> SegmentResult:
    """Run a segment; if it blows up, once more from a quenched start; if it does so again, say why."""
    engine.evaluations = 0
    reasons = []
    for retries in (0, 1):
        try:
            frames = _attempt(engine, segment, gentle=segment.relax or bool(retries))
        except (Blowup, openmm.OpenMMException) as error:
            reasons.append(str(error))
            continue
        final = engine.context.getState(positions=True, velocities=True)
        return SegmentResult(
            segment.walker,
            *frames,
            final_positions=final.getPositions(asNumpy=True)._value,
            final_velocities=final.getVelocities(asNumpy=True)._value if engine.has_velocities else None,
            force_evaluations=engine.evaluations,
            failure=None,
            retries=retries,
        )
    return _failed(segment, f"{reasons[0]}; started again gently: {reasons[1]}", engine.evaluations, retries=1)


def _attempt(engine: Engine, segment: Segment, gentle: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, energies and forces of the frames, or raise where the walker blows up."""
    velocity_seed, noise_seed = _seeds(segment.seed, gentle)
    engine.reseed(noise_seed)
    start = segment.center if segment.pull_from is None else segment.pull_from
    engine.set_umbrella(start, segment.force_constants)
    engine.place(segment.positions)
    engine.refuse_changed("at the start")
    if gentle:
        engine.quench(QUENCH_STEPS)
        engine.refuse_changed("in the descent")
    if gentle or segment.velocities is None:
        engine.draw_velocities(velocity_seed)
    else:
        engine.context.setVelocities(np.ascontiguousarray(segment.velocities, dtype=float))

    lowest = engine.check(np.inf, "at the start")
    factor = GENTLE_FACTOR if gentle else 1
    with engine.time_step_shortened(factor):
        if segment.pull_steps:
            for fraction, steps in _pull_schedule(segment.pull_steps * factor):
                engine.set_umbrella(start + fraction * (segment.center - start), segment.force_constants)
                engine.step(steps)
            lowest = engine.check(lowest, "in the pull")
            engine.refuse_changed("in the pull")
        # what a descent has cooled is no sample of the ensemble until it has run for as long as the frames will take
        equilibration = max(segment.equilibration_steps, segment.steps) if gentle else segment.equilibration_steps
        if equilibration:
            engine.step(equilibration * factor)
            lowest = engine.check(lowest, "in the equilibration")
            engine.refuse_changed("in the equilibration")
    return _record(engine, segment, lowest)


def _record(engine: Engine, segment: Segment, lowest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = segment.steps // segment.frame_interval
    positions = np.empty((count, *segment.positions.shape))
    energies = np.empty(count)
    forces = np.empty_like(positions)
    groups = engine.settings.physical_groups
    for frame in range(count):
        engine.step(segment.frame_interval)
        state = engine.state(groups)
        copy_vectors(state, openmm.State.Positions, positions[frame])
        copy_vectors(state, openmm.State.Forces, forces[frame])
        energies[frame] = energy = state.getPotentialEnergy()._value
        refuse_blowup(energy, lowest + engine.headroom, "in the run")
        lowest = min(lowest, energy)
    if not (np.isfinite(forces).all() and np.isfinite(positions).all()):
        raise Blowup("a position or force was not finite")
    refuse_changed(engine.settings.stereo, positions, "in the run")
    return positions, energies, forces


def _pull_schedule(steps: int) -> Iterator[tuple[float, int]]:
    """Yield (fraction of the way, steps to run there); the last fraction is 1."""
    increments = min(PULL_INCREMENTS, steps)
    ends = np.arange(increments + 1) * steps // increments
    for increment in range(increments):
        yield (increment + 1) / increments, int(ends[increment + 1] - ends[increment])


def _seeds(seed: int, gentle: bool) -> tuple[int, int]:
    """Return independent seeds for velocities and noise that OpenMM takes: 1 to 2**31 - 1 (0 would mean "any")."""
    words = np.random.SeedSequence(seed, spawn_key=(int(gentle),)).generate_state(2)
    return int(words[0] % (2**31 - 1)) + 1, int(words[1] % (2**31 - 1)) + 1


def _failed(segment: Segment, reason: str, force_evaluations: int, retries: int) -> SegmentResult:
    atoms = len(segment.positions)
    return SegmentResult(
        segment.walker,
        positions=np.empty((0, atoms, 3)),
        energies=np.empty(0),
        forces=np.empty((0, atoms, 3)),
        final_positions=segment.positions,
        final_velocities=None,
        force_evaluations=force_evaluations,
        failure=reason,
        retries=retries,
    )


def _evaluate_chunk(unit: tuple[MDSettings, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    settings, positions = unit
    engine = engine_for(settings)
    energies = np.full(len(positions), np.nan)
    forces = np.full(positions.shape, np.nan)
    for index, configuration in enumerate(positions):
        with contextlib.suppress(openmm.OpenMMException):  # raised for coordinates that are nan
            engine.context.setPositions(configuration)
            engine.context.computeVirtualSites()
            state = engine.state(settings.physical_groups)
            copy_vectors(state, openmm.State.Forces, forces[index])
            energies[index] = state.getPotentialEnergy()._value
    undefined = ~(np.isfinite(energies) & np.isfinite(forces).all(axis=(1, 2)))
    energies[undefined] = np.nan
    forces[undefined] = np.nan
    return energies, forces


def _share_out(costs: Sequence[int], chunks: int) -> list[list[int]]:
    """Return at most `chunks` non-empty lists of indices with near-equal sums: longest first, to the lightest list."""
    lists: list[list[int]] = [[] for _ in range(max(1, min(chunks, len(costs))))]
    totals = [0] * len(lists)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        lightest = totals.index(min(totals))
        lists[lightest].append(index)
        totals[lightest] += costs[index] + 1
    return [indices for indices in lists if indices]
