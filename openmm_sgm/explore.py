"""Exploration: windows spread over CV space from where the data is."""

from __future__ import annotations

import numpy as np

from .campaign import Campaign
from .frames import BURN_IN
from .importance import effective_sample_size
from .units import SamplingError

__all__ = ["explore", "generated_starts", "unreached"]

FIRST_TRAINING = 30
"""Windows from which a generator is worth training; it is trained again whenever their number has doubled."""
PULLED, GENERATED_START = "pulling from a neighbour", "a generated configuration"


def explore(campaign: Campaign, budget: int, *, generate: bool = True) -> None:
    """Visit windows from where the data is, lowest first, until none is left below the height or the budget ends.

    A new window starts from a generated configuration where the generator can be trusted there, and from its lowest
    neighbour by pulling where it cannot; always by pulling, and nothing is trained, where `generate` is False.
    """
    end = campaign.cost.total + budget
    if not campaign.walkers:
        _first_window(campaign)
    trained_at = len(campaign.walkers) if campaign.generator else FIRST_TRAINING
    while True:
        affordable = max(0, (end - campaign.cost.total) // _visit_cost(campaign))
        windows = _frontier(campaign)[:affordable]
        if not windows:
            break
        before = len(campaign.walkers)
        _visit(campaign, windows)
        if len(campaign.walkers) == before:
            break
        campaign.update_free_energies()
        if generate and len(campaign.walkers) >= 2 * trained_at:
            trained_at = len(campaign.walkers)
            campaign.train(steps=campaign.options.exploration_training_steps)
        campaign.say(f"explored {len(campaign.walkers)} windows")


def unreached(campaign: Campaign) -> tuple[list[int], list[int]]:
    """Return windows beside visited ones that were left empty: as too high, and for want of budget."""
    beside = {n for w in campaign.walkers for n in campaign.grid.neighbours(w)}
    wanted = set(_frontier(campaign))
    return sorted(beside - set(campaign.walkers) - wanted), sorted(wanted)


def _visit_cost(campaign: Campaign) -> int:
    """Return the most force evaluations that a visit takes: trials, pull, equilibration, frames, and their checks."""
    o = campaign.options
    trials = o.trial if campaign.generator else 0
    frames = o.exploration_steps // o.frame_interval
    return trials + o.pull_steps + o.equilibration_steps + o.exploration_steps + frames + 4


def _first_window(campaign: Campaign) -> None:
    molecule, grid, o = campaign.molecule, campaign.grid, campaign.options
    start = molecule.evaluate_cvs(molecule.positions[None])[0]
    window = grid.nearest(start)
    center = grid.centers[window]
    path = center - grid.difference(center, start)
    segment = campaign.segment(window, molecule.positions, None, path, o.pull_steps, o.first_steps)
    campaign.run([segment], BURN_IN, {window: "the starting structure"})
    if campaign.walkers[window].failure:
        raise SamplingError(f"the starting structure cannot be simulated: {campaign.walkers[window].failure}")
    campaign.update_free_energies()


def _frontier(campaign: Campaign) -> list[int]:
    """Return unvisited windows beside visited ones that are low enough, the neighbour of the lowest first."""
    height = np.nanmin(campaign.free_energies) + campaign.options.explore_height * campaign.beta
    found: dict[int, float] = {}
    for window in campaign.walkers:
        level = campaign.free_energies[window]
        if level <= height:
            for neighbour in campaign.grid.neighbours(window):
                if neighbour not in campaign.walkers:
                    found[neighbour] = min(level, found.get(neighbour, np.inf))
    return sorted(found, key=lambda w: found[w])


def _visit(campaign: Campaign, windows: list[int]) -> None:
    grid, o = campaign.grid, campaign.options
    trusted = generated_starts(campaign, windows)
    segments, origins = [], {}
    for window in windows:
        center = grid.centers[window]
        if window in trusted:
            segments.append(campaign.segment(window, trusted[window], None, None, 0, o.equilibration_steps // 2))
            origins[window] = GENERATED_START
            continue
        walkers = campaign.walkers
        sound = [n for n in grid.neighbours(window) if n in walkers and not walkers[n].failure]
        if not sound:
            continue
        source = min(sound, key=lambda n: campaign.free_energies[n])
        path = center - grid.difference(center, grid.centers[source])
        start = walkers[source]
        segments.append(
            campaign.segment(window, start.positions, start.velocities, path, o.pull_steps, o.equilibration_steps)
        )
        origins[window] = PULLED
    campaign.run(segments, BURN_IN, origins)


def generated_starts(campaign: Campaign, windows: list[int]) -> dict[int, np.ndarray]:
    """Return starting configurations of windows in which the generator's importance weights can be trusted."""
    if campaign.generator is None:
        return {}
    o, rng = campaign.options, campaign.rng()
    frames, log_weights, _ = campaign.draw(np.array(windows), np.full(len(windows), o.trial), "trial")
    starts = {}
    for window, own in zip(windows, log_weights.reshape(len(windows), o.trial), strict=True):
        if effective_sample_size(own) * o.trial < o.trial_ess:
            continue
        rows = np.flatnonzero(frames.windows == window)
        p = np.exp(frames.log_weights[rows] - frames.log_weights[rows].max())
        starts[window] = frames.positions[rng.choice(rows, p=p / p.sum())]
    return starts
