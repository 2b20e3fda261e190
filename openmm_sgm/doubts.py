"""What a script is told at the end of a run: where surface and averages are not to be trusted, and what would help."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from .campaign import Campaign
from .confined import ConfinedTorsion
from .explore import unreached
from .hidden import HiddenStates
from .units import HiddenStateWarning

__all__ = ["LEAST_TRUSTED_ACCEPTANCE", "left_out", "listed", "mistrusted", "warn_of"]

LEAST_TRUSTED_ACCEPTANCE = 0.05
"""Median acceptance below which windows hold a few copies of what they began with, whatever their states are."""
MOST_NAMED = 6


def mistrusted(acceptance: np.ndarray) -> bool:
    """Return whether so little is accepted, shape (n_windows,), NaN where nothing was offered, that the windows' chains
    say nothing of each other."""
    asked = acceptance[np.isfinite(acceptance)]
    return bool(len(asked)) and float(np.median(asked)) < LEAST_TRUSTED_ACCEPTANCE


def left_out(campaign: Campaign, windows: Sequence[str]) -> str:
    """Return in words which windows a surface says nothing of; '' where it says something of all."""
    if not windows:
        return ""
    return (
        f"the surface says nothing of {len(windows)} of {len(campaign.grid.centers)} windows "
        f"({len(campaign.walkers)} were visited): {listed(windows)}"
    )


def listed(texts: Sequence[str], most: int = MOST_NAMED) -> str:
    """Return texts with semicolons between them, the first ones where they are many."""
    more = "" if len(texts) <= most else f" and {len(texts) - most} more"
    return "; ".join(texts[:most]) + more


def warn_of(
    campaign: Campaign, hidden: HiddenStates, confined: tuple[ConfinedTorsion, ...], stacklevel: int = 3
) -> None:
    """Warn of a generator that cannot be trusted, windows that the budget left, and states that may be missing."""
    if mistrusted(campaign.acceptance):
        accepted = float(np.nanmedian(campaign.acceptance))
        warnings.warn(
            f"the generator cannot be trusted for this molecule at this budget: {accepted:.0%} of its configurations "
            "were accepted, so that windows hold a few copies of what they began with and errors are too small; give "
            "run() more force evaluations, a generator= trained on frames that you have, or fewer or other CVs",
            stacklevel=stacklevel,
        )
    if hidden.disagreements and (hidden.disagreements[0].separate or not mistrusted(campaign.acceptance)):
        worst = hidden.disagreements[0]
        more = len({(d.first, d.second) for d in hidden.disagreements}) - 1
        others = f", and {more} more pairs disagree" if more else ""
        what = "hold different states" if worst.separate else "differ where they should agree"
        places = " and ".join(campaign.describe(window) for window in (worst.first, worst.second))
        warnings.warn(
            f"overlapping windows {what}: at {places} {worst}{others}; "
            "surface and averages are not to be trusted there, and their errors do not cover it: print "
            "hidden_states(), and see "
            + ("SamplerOptions.ladder" if worst.separate else "whether a larger budget is enough"),
            HiddenStateWarning,
            stacklevel=stacklevel,
        )
    unaffordable = unreached(campaign)[1]
    if unaffordable:
        warnings.warn(
            f"the budget ended before {listed([campaign.describe(w) for w in unaffordable])} could be visited, "
            "which may be as low as what was: give run() more force evaluations",
            stacklevel=stacklevel,
        )
    if confined:
        warnings.warn(
            f"in every window {', '.join(map(str, confined))} stayed in one place: if there are other states, no "
            "window has visited them and no error covers them; make it a CV, give starts, or see "
            "SamplerOptions.ladder",
            HiddenStateWarning,
            stacklevel=stacklevel,
        )
