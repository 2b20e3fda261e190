"""Exploration: windows spread over CV space from where the data is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .campaign import Campaign
from .frames import BURN_IN
from .importance import Draws, effective_sample_size
from .units import SamplingError

__all__ = ["GENERATED_START", "explore", "explore_ladder", "open_by_trial", "simulate_to_learn", "unreached"]

FIRST_TRAINING, GROWTH = 30, 1.3
"""Windows from which a generator is worth training, and the growth of their number that is worth another training."""
LOOKS, MARGIN, RIM = 2, 3.0, 15.0
"""The first free energy of a window is rough, and no pass is to be missed for that. Neighbours of windows that
are higher than `explore_height` by less than the first are visited, and windows up to the second higher simulated and
weighed again, twice at most, before the exploration ends."""
RELAX_STEPS = 50
"""Of the time step, before the first window; taken as four times as many of a quarter."""
BEYOND_SHARE, BEYOND_BY_PULLING, RIDGE_STEP = 0.3, 0.05, 5.0
"""Of an exploration's budget, for windows above `explore_height`, the second where all are pulled, which takes most of
the budget as it is; and how much higher, kJ/mol, it climbs at a time."""
LADDER_TRIALS = 4
"""Trials of a window from a hotter one's generator, in units of `options.trial`."""
PULLED, GENERATED_START, HOTTER = "pulling from a neighbour", "a generated configuration", "a hotter walker"
STRUCTURE, GIVEN = "the starting structure", "a configuration given"


def explore(campaign: Campaign, budget: int, *, generate: bool = True) -> None:
    """Visit windows from where the data is, lowest first, until all are visited or the budget ends.

    Beyond `explore_height` the lowest ridge is crossed next, with `BEYOND_SHARE` of the budget at most: what lies
    behind a ridge may be as low as anything.

    Once there is a generator, a new window is tried with a few generated configurations: where their weights can be
    trusted, one of them is its start and they are its data, at no cost of MD. Where they cannot, even after training
    on all that has been found since, the window is pulled from its lowest neighbour and simulated; later, when the
    generator has learnt from it, it is tried as well, for a free energy that does not hang on the way there. Always by
    pulling, and nothing is trained, where `generate` is False.
    """
    end = campaign.cost.total + budget
    ceiling = floor = campaign.options.explore_height + MARGIN
    beyond = int((BEYOND_SHARE if generate else BEYOND_BY_PULLING) * budget)
    if not campaign.walkers:
        _first_windows(campaign, budget)
    trained_at = len(campaign.walkers) if campaign.generator else 0
    refused: set[int] = set()  # by the generator as it stands
    checked, looks = set[int](), 0 if campaign.rounds else LOOKS  # later rounds weigh all windows anyway
    while True:
        before = campaign.cost.total
        low = _frontier(campaign, floor)
        frontier = low or _frontier(campaign, ceiling)
        affordable = max(0, end - before if low else min(end - before, beyond))
        untried = [w for w in (*frontier, *_unweighed(campaign)) if w not in refused]
        untried = untried[: affordable // campaign.options.trial] if generate and campaign.generator else []
        visited = len(campaign.walkers)
        if untried:
            refused |= set(untried) - set(open_by_trial(campaign, untried, campaign.options.trial))
        elif generate and _worth_training(campaign, trained_at):
            trained_at = len(campaign.walkers)
            campaign.train(steps=campaign.options.exploration_training_steps)
            refused.clear()
            continue
        else:
            windows = frontier[: affordable // _visit_cost(campaign)]
            if generate:
                windows = windows[: max(FIRST_TRAINING // 2, len(campaign.walkers) // 4)]
            if not windows:
                rim = [w for w in _rim(campaign) if w not in checked][: affordable // _visit_cost(campaign)]
                if generate and campaign.generator and rim and looks:
                    looks -= 1
                    checked |= set(rim)
                    _look_again(campaign, rim)
                    refused.clear()
                    continue
                ridge = _lowest_ridge(campaign)
                if frontier or ridge == np.inf or min(end - campaign.cost.total, beyond) < _visit_cost(campaign):
                    break
                ceiling = max(ceiling, ridge) + RIDGE_STEP
                continue
            _visit(campaign, windows)
            if len(campaign.walkers) == visited:
                break
        if not low:
            beyond -= campaign.cost.total - before
        if len(campaign.walkers) > visited or untried:
            campaign.update_free_energies()
            campaign.say(f"explored {len(campaign.walkers)} windows")


def simulate_to_learn(campaign: Campaign, budget: int) -> None:
    """Simulate the active windows until there are enough frames for a first generator, or the budget is spent.

    Over few windows an exploration ends with a handful of frames of each, from which no model can be learnt.
    """
    o, windows = campaign.options, campaign.active_windows()[0]
    molecule, interval = campaign.molecule, o.frame_interval
    coordinates = 3 * int((molecule.masses > 0).sum()) - len(molecule.constraints)
    lacking = o.frames_per_coordinate * coordinates - campaign.frames_to_learn_from()
    each = min(lacking, budget // (interval + 1)) // len(windows)
    if each < 1:
        return
    walkers = campaign.walkers
    campaign.run(
        [
            campaign.segment(int(w), walkers[w].positions, walkers[w].velocities, None, 0, 0, each * interval)
            for w in windows
        ],
        BURN_IN,
    )
    campaign.update_free_energies()
    campaign.say(f"simulated {len(windows)} windows for {each * interval} steps each, to learn from")


def explore_ladder(campaign: Campaign, budget: int, steps: int) -> None:
    """Explore at the highest temperature, where barriers that no CV crosses are low, and bring the states down.

    A generator that is conditioned on temperature learns what the hot walkers find; level by level it offers this to
    the next lower temperature, with exact weights there, and learns from what it has offered. Cold walkers, which would
    teach it the one state that they are trapped in, are used only where it cannot be trusted.

    budget : force evaluations to open windows with, of which more are left than spent; steps : MD at the top
    """
    levels = [campaign, *campaign.hotter]
    hottest = levels[-1]
    explore(hottest, budget // 2)
    windows, _ = hottest.active_windows()
    interval = campaign.options.frame_interval
    each = steps // len(windows) // interval * interval
    if each:
        hottest.simulate(windows, each)
        hottest.update_free_energies()
    for above, level in zip(reversed(levels[1:]), reversed(levels[:-1]), strict=True):
        campaign.train(steps=campaign.options.exploration_training_steps)
        _descend(above, level)


def _descend(above: Campaign, level: Campaign) -> None:
    """Open at one level the windows of the next hotter one: by generated draws, or from its walkers."""
    o, windows = level.options, above.active_windows()[0]
    opened = open_by_trial(level, windows.tolist(), LADDER_TRIALS * o.trial)
    segments = [
        level.segment(window, above.walkers[window].positions, None, None, 0, o.equilibration_steps)
        for window in windows.tolist()
        if window not in opened
    ]
    if segments:
        level.run(segments, BURN_IN, {segment.walker: HOTTER for segment in segments})
    level.update_free_energies()
    level.say(f"{len(opened)} windows opened by generated configurations, {len(segments)} from hotter walkers")


def _rim(campaign: Campaign) -> list[int]:
    """Return sound windows that are not much too high for their neighbours to be visited."""
    heights = (
        campaign.free_energies - np.nanmin(campaign.free_energies)
    ) / campaign.beta - campaign.options.explore_height
    return [w for w, k in campaign.walkers.items() if not k.failure and MARGIN < heights[w] <= MARGIN + RIM]


def _look_again(campaign: Campaign, rim: list[int]) -> None:
    """Simulate windows for longer, learn from it, and weigh them anew: no pass is closed on a rough free energy."""
    walkers, o = campaign.walkers, campaign.options
    segments = [campaign.segment(w, walkers[w].positions, walkers[w].velocities, None, 0, 0) for w in rim]
    campaign.run(segments, BURN_IN)
    campaign.train(steps=o.exploration_training_steps)
    open_by_trial(campaign, rim, 2 * o.trial)
    campaign.update_free_energies()
    campaign.say(f"looked again at {len(rim)} windows")


def _unweighed(campaign: Campaign) -> list[int]:
    """Return sound windows in which no generated configurations have been weighed."""
    weighed = campaign.trial_weights().drawn + campaign.draw_weights().drawn
    return [w for w, walker in campaign.walkers.items() if not walker.failure and not weighed[w]]


def _worth_training(campaign: Campaign, trained_at: int) -> bool:
    """Return whether enough windows have been found since the last training to learn from."""
    return len(campaign.walkers) >= max(FIRST_TRAINING, GROWTH * trained_at)


def unreached(campaign: Campaign) -> tuple[list[int], list[int]]:
    """Return windows beside visited ones that were left empty: as too high, and for want of budget."""
    beside = {n for w in campaign.walkers for n in campaign.grid.neighbours(w)}
    wanted = set(_frontier(campaign, campaign.options.explore_height + MARGIN))
    return sorted(beside - set(campaign.walkers) - wanted), sorted(wanted)


def _visit_cost(campaign: Campaign) -> int:
    """Return the most force evaluations that a visit by pulling takes: pull, equilibration, frames, and checks."""
    o = campaign.options
    frames = o.exploration_steps // o.frame_interval
    return o.pull_steps + o.equilibration_steps + o.exploration_steps + frames + 4


def _first_windows(campaign: Campaign, budget: int) -> None:
    """Start where the molecule is, and in every window that the user has given configurations for."""
    o = campaign.options
    window = _start_windows(campaign, _relaxed(campaign)[None], o.first_steps, STRUCTURE)[0]
    if campaign.walkers[window].failure:
        raise SamplingError(f"the starting structure cannot be simulated: {campaign.walkers[window].failure}")
    campaign.update_free_energies()
    given = campaign.target.starts
    if len(given):
        affordable = max(0, budget - campaign.cost.total) // _visit_cost(campaign)
        windows = _start_windows(campaign, given, o.equilibration_steps, GIVEN, affordable)
        campaign.update_free_energies()
        campaign.say(f"started {len(windows)} windows from the configurations given")


def _relaxed(campaign: Campaign) -> np.ndarray:
    """Return the molecule's structure after a descent and a short gentle run without a bias, (n_atoms, 3), nm.

    What a file holds may be strained, and an umbrella's pull on top of it turns bonds that neither would turn alone.
    """
    none = np.zeros(len(campaign.molecule.cvs))
    free = campaign.segment(0, campaign.molecule.positions, None, None, 0, RELAX_STEPS, 0)
    result = campaign.run_unrecorded(replace(free, force_constants=none, relax=True))
    if result.failure:
        raise SamplingError(f"the starting structure cannot be simulated: {result.failure}")
    return result.final_positions


def _start_windows(
    campaign: Campaign, positions: np.ndarray, equilibration_steps: int, origin: str, most: int = 1
) -> list[int]:
    """Simulate windows that hold none yet, each from the one of `positions` that is closest to its centre."""
    grid, o = campaign.grid, campaign.options
    cvs = campaign.molecule.evaluate_cvs(positions)
    nearest = np.array([grid.nearest(values) for values in cvs])
    distance = np.array([grid.reduced_bias(c, grid.centers[w][None])[0] for c, w in zip(cvs, nearest, strict=True)])
    closest: dict[int, int] = {}
    for row in np.argsort(distance, kind="stable"):
        if nearest[row] not in campaign.walkers:
            closest.setdefault(int(nearest[row]), int(row))
    chosen = dict(list(closest.items())[:most])
    segments = []
    for window, row in chosen.items():
        center = grid.centers[window]
        path = center - grid.difference(center, cvs[row])
        segments.append(campaign.segment(window, positions[row], None, path, o.pull_steps, equilibration_steps))
    if segments:
        campaign.run(segments, BURN_IN, dict.fromkeys(chosen, origin))
    return list(chosen)


def _lowest_ridge(campaign: Campaign) -> float:
    """Return how high the lowest window with an unvisited neighbour is, kJ/mol above the lowest; infinity for none."""
    lowest = np.nanmin(campaign.free_energies)
    heights = [
        (campaign.free_energies[w] - lowest) / campaign.beta
        for w in campaign.walkers
        if any(n not in campaign.walkers for n in campaign.grid.neighbours(w))
    ]
    return min((h for h in heights if np.isfinite(h)), default=np.inf)


def _frontier(campaign: Campaign, ceiling: float) -> list[int]:
    """Return unvisited windows beside visited ones below a height, kJ/mol, the neighbour of the lowest first."""
    height = np.nanmin(campaign.free_energies) + ceiling * campaign.beta
    found: dict[int, float] = {}
    for window in campaign.walkers:
        level = campaign.free_energies[window]
        if level <= height:
            for neighbour in campaign.grid.neighbours(window):
                if neighbour not in campaign.walkers:
                    found[neighbour] = min(level, found.get(neighbour, np.inf))
    return sorted(found, key=lambda w: found[w])


def _visit(campaign: Campaign, windows: list[int]) -> None:
    """Pull each window's walker from its lowest neighbour, and simulate."""
    grid, o = campaign.grid, campaign.options
    segments = []
    for window in windows:
        walkers = campaign.walkers
        sound = [n for n in grid.neighbours(window) if n in walkers and not walkers[n].failure]
        if not sound:
            continue
        source = min(sound, key=lambda n: campaign.free_energies[n])
        center = grid.centers[window]
        path = center - grid.difference(center, grid.centers[source])
        start = walkers[source]
        segments.append(
            campaign.segment(window, start.positions, start.velocities, path, o.pull_steps, o.equilibration_steps)
        )
    campaign.run(segments, BURN_IN, {segment.walker: PULLED for segment in segments})


def open_by_trial(campaign: Campaign, windows: list[int], trial: int) -> list[int]:
    """Draw `trial` configurations in each window and open those in which enough are effective; return these."""
    o, rng = campaign.options, campaign.rng()
    counts = np.full(len(windows), trial)
    frames, log_weights, _ = campaign.draw(np.array(windows), counts, "trial")
    opened, seeds = [], []
    drawn = np.zeros(len(campaign.grid.centers), dtype=np.int64)
    for window, own in zip(windows, log_weights.reshape(len(windows), trial), strict=True):
        known = own[~np.isnan(own)]
        if effective_sample_size(known) * len(known) >= o.trial_ess:
            rows = np.flatnonzero(frames.windows == window)
            p = np.exp(frames.log_weights[rows] - frames.log_weights[rows].max())
            opened.append(window)
            drawn[window] = len(known)
            seeds.append(rng.choice(rows, p=p / p.sum()))
    if opened:
        campaign.open(frames[np.array(seeds)], GENERATED_START)
        campaign.trials.append(Draws(frames[np.isin(frames.windows, opened)], drawn))
    return opened
