"""The methods of a comparison, each with the settings that its authors recommend: one table, `METHODS`.

A method is a function of (molecule, seed, budgets, executor, workers) that yields a `Snapshot` at each budget. Rivals
make one long run, whose snapshots are nested; ours is run afresh for every budget. Every integration step counts as one
force evaluation (the bias is part of it), and so does every energy that is asked for apart from the steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import openmm

from .frames import INJECTED, MD, Frames
from .free_energy import estimate
from .grown_bias import metadynamics, opes
from .options import SamplerOptions
from .platforms import choose_platform
from .sampler import ScoreSampler
from .simulate import MDSettings, Segment, run_segments
from .system import MolecularSystem
from .umbrella import Snapshot, Stopwatch, replica_exchange, surface_bins, umbrella, umbrella_seeded
from .windows import WindowGrid

__all__ = ["METHODS", "Method", "Snapshot"]

Rival: TypeAlias = Callable[[MolecularSystem, int, Sequence[int], Executor, int], Iterator[Snapshot]]


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes
    ----------
    run : see `Rival`
    settings : what it is run with, and where that comes from, in a sentence or two
    nested : whether one run gives the snapshots of all budgets
    generates : whether it trains a generator, and takes `options`, a `SamplerOptions`
    needs : a package that is not always installed; how to install it : its extra
    """

    run: Rival
    settings: str
    nested: bool = True
    generates: bool = False
    needs: str | None = None
    extra: str | None = None


# plain molecular dynamics

MD_INTERVAL = 100
"""Steps between frames: torsions of a small molecule in vacuum move on within 0.2 ps."""
MD_CHUNK = 20_000


def md(
    molecule: MolecularSystem, seed: int, budgets: Sequence[int], executor: Executor, workers: int
) -> Iterator[Snapshot]:
    """One unbiased trajectory from the start, a histogram, and errors from a block bootstrap over it.

    It is treated as a single window without a bias, so that blocks are as long as the CVs' and the energy's own
    correlation: states that it never visited are in no error bar.
    """
    biased, prefixes, physical_groups = molecule.biased_system()
    platform = choose_platform(biased, molecule.positions)
    settings = MDSettings(
        openmm.XmlSerializer.serialize(biased),
        physical_groups,
        prefixes,
        molecule.temperature_k,
        molecule.time_step_fs,
        molecule.friction_per_ps,
        platform.name,
        platform.properties,
        molecule.integrator,
    )
    n = len(molecule.cvs)
    center = molecule.evaluate_cvs(molecule.positions[None])[0]
    periods = tuple(cv.period for cv in molecule.cvs)
    grid = WindowGrid(tuple(center[:, None]), np.zeros(n), periods, molecule.temperature_k)
    edges, names, units = surface_bins(molecule)
    seeds = np.random.SeedSequence(seed)
    clock, spent, parts = Stopwatch(), 0, [Frames.empty(molecule.n_atoms, n)]
    positions, velocities = molecule.positions, None
    for budget in budgets:
        with clock.running():
            while (frames := min(MD_CHUNK // MD_INTERVAL, (budget - spent - 2) // (MD_INTERVAL + 1))) > 0:
                segment = Segment(
                    0, positions, velocities, center, np.zeros(n), None, 0, 0, frames * MD_INTERVAL, MD_INTERVAL,
                    int(seeds.spawn(1)[0].generate_state(1)[0]),
                )  # fmt: skip
                result = run_segments(settings, [segment], executor, 1)[0]
                spent += result.force_evaluations
                if result.failure:
                    raise RuntimeError(result.failure)
                positions, velocities = result.final_positions, result.final_velocities
                parts.append(_unbiased_frames(molecule, result.positions, result.energies, center))
        started = time.perf_counter()
        chain = Frames.concatenate(parts)
        rng = np.random.default_rng(np.random.SeedSequence([seed, budget]))
        surface = estimate(
            chain, [], grid, edges, names, units, method="mbar", mbar=np.zeros(1), rng=rng
        ).surface  # fmt: skip
        yield Snapshot(budget, spent, clock.seconds + time.perf_counter() - started, surface)


def _unbiased_frames(
    molecule: MolecularSystem, positions: np.ndarray, energies: np.ndarray, center: np.ndarray
) -> Frames:
    n = len(energies)
    return Frames(
        positions=positions,
        forces=np.zeros_like(positions),
        energies=energies,
        cvs=molecule.evaluate_cvs(positions),
        labels=np.tile(center, (n, 1)),
        windows=np.zeros(n, dtype=np.int64),
        log_weights=np.zeros(n),
        source=np.full(n, MD, dtype=np.int8),
    )


# ours


def score(
    molecule: MolecularSystem,
    seed: int,
    budgets: Sequence[int],
    executor: Executor,
    workers: int,
    options: SamplerOptions | None = None,
) -> Iterator[Snapshot]:
    """`ScoreSampler` with its defaults, from the start for every budget. Frames are its windows' chains."""
    for budget in budgets:
        sampler = ScoreSampler(molecule, seed=seed, workers=workers, executor=executor, options=options)
        started = time.perf_counter()
        sampler.run(budget)
        surface = sampler.surface()
        seconds = time.perf_counter() - started
        campaign = sampler.campaign
        assert campaign is not None
        frames = campaign.chain_of(MD, INJECTED) if campaign.rounds else None
        note = "" if campaign.rounds else "the budget ended before a round: exploration alone"
        yield Snapshot(budget, campaign.cost.total, seconds, surface, frames, campaign.grid, note)


def score_quick(
    molecule: MolecularSystem,
    seed: int,
    budgets: Sequence[int],
    executor: Executor,
    workers: int,
    options: SamplerOptions | None = None,
) -> Iterator[Snapshot]:
    """`score` with `SamplerOptions.made_quick`, and without a ladder."""
    quick = replace(options or SamplerOptions(), ladder=()).made_quick()
    return score(molecule, seed, budgets, executor, workers, quick)


METHODS: dict[str, Method] = {
    "umbrella": Method(
        umbrella,
        "Windows of the system's grid (18 a period, 1.8 umbrella widths apart), visited by pulling from their lowest "
        "neighbour up to 40 kJ/mol, equal dynamics in each, equilibration detected (Chodera 2016), MBAR.",
    ),
    "umbrella-seeded": Method(
        umbrella_seeded,
        "The same windows, found as score finds them and started from generated configurations; dynamics and MBAR as "
        "umbrella.",
        generates=True,
    ),
    "replica-exchange": Method(
        replica_exchange,
        "The windows of umbrella, started by the same pulling, coupled by OpenMM's ReplicaExchangeSampler: n² attempts "
        "between random pairs, OpenMM's default, every 20 steps. One core.",
    ),
    "metadynamics": Method(
        metadynamics,
        "OpenMM's well-tempered Metadynamics: 1.2 kJ/mol, 0.35 rad, every picosecond, bias factor 10 (PLUMED-NEST "
        "19.000 and 19.068, alanine). One core.",
    ),
    "opes": Method(
        opes,
        "openmm-opes with the settings of its README for alanine dipeptide: barrier 50 kJ/mol, bias factor 10, a "
        "kernel every picosecond, bandwidth 0.15 rad, smoothing correction. One core.",
        needs="openmm_opes",
        extra="opes",
    ),
    "md": Method(md, "One unbiased trajectory from the start; a histogram. One core."),
    "score": Method(
        score, "ScoreSampler with its defaults, run afresh for every budget.", nested=False, generates=True
    ),
    "score-quick": Method(
        score_quick,
        "ScoreSampler with SamplerOptions().made_quick(), for least time: windows opened by pulling, no training "
        "before the first round. Budgets below 300k are too small for it.",
        nested=False,
        generates=True,
    ),
}
