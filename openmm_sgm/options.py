"""What a user can choose about a run."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Literal

from .networks import NetworkOptions
from .training import TrainingOptions

__all__ = ["SamplerOptions"]


@dataclass(frozen=True)
class SamplerOptions:
    """How to run; every height is in kJ/mol above the lowest window.

    Attributes
    ----------
    explore_height : neighbours of windows below it are visited
    surface_height : the part of the surface whose error counts
    outside_share : windows between `surface_height` and `explore_height` connect the others: they are generated for
        this much less
    first_steps, pull_steps, equilibration_steps, exploration_steps : MD of a window's first visit
    md_share : of what is spent in a round, for MD after the injection, in as many windows as it suffices for
    md_steps : MD in each of these
    frame_interval : steps between stored frames
    exploration_training_steps : of a training during the exploration
    explore_share : largest share of the budget for exploration
    ladder : temperatures in K, ascending and above the target's, at which the windows are simulated as well, to find
        states behind barriers that no CV crosses; empty for none
    ladder_share : of the budget, for MD at the highest of them
    explore_by : "trial", windows are opened by generated configurations wherever these can be trusted, or "pulling",
        always from a neighbour, without a generator: several times the force evaluations and hardly any time
    rounds : of training, generation, injection and simulation; each generates `growth` times as much as the one before
    frames_per_coordinate : from which a first generator is trained, for each degree of freedom that is not constrained;
        the windows are simulated until there are as many
    learning_ess : a round whose median effective sample size is below it does not count as one of `rounds`, as long as
        less than half of the budget is spent: the next generator learns from it, and no estimate rests on it
    trial : configurations drawn to see whether the generator can be trusted with a new window
    trial_ess : effective number of them from which it is
    ode_steps : Runge–Kutta steps at first; refined until the measured error of log q is below `density_error`
    density_error : kT
    """

    explore_height: float = 40.0
    surface_height: float = 25.0
    outside_share: float = 0.5
    first_steps: int = 500
    pull_steps: int = 100
    equilibration_steps: int = 60
    exploration_steps: int = 100
    md_share: float = 0.3
    md_steps: int = 40
    frame_interval: int = 20
    exploration_training_steps: int = 400
    explore_share: float = 0.5
    ladder: tuple[float, ...] = ()
    ladder_share: float = 0.3
    explore_by: Literal["trial", "pulling"] = "trial"
    rounds: int = 3
    growth: float = 3.0
    frames_per_coordinate: int = 20
    learning_ess: float = 0.2
    trial: int = 16
    trial_ess: float = 2.0
    ode_steps: int = 8
    density_error: float = 0.02
    training: TrainingOptions = field(default_factory=TrainingOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)

    def made_quick(self) -> SamplerOptions:
        """Return these options for least time instead of fewest force evaluations, where one takes 0.1 ms or less.

        Windows are opened by pulling, with longer dynamics in each, so that nothing is trained before the first round;
        this takes some 200,000 force evaluations over two torsions, and budgets should be 300,000 or more. A ladder
        cannot be had with it.
        """
        return replace(self, explore_by="pulling", explore_share=0.75, pull_steps=200, exploration_steps=400, rounds=2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ladder", tuple(float(t) for t in self.ladder))
        if any(not a < b for a, b in itertools.pairwise((0.0, *self.ladder))):
            raise ValueError(f"the ladder's temperatures must be positive and ascend, got {self.ladder}")
        interval = self.frame_interval
        for name in ("exploration_steps", "md_steps"):
            value = getattr(self, name)
            if value < interval or value % interval:
                raise ValueError(f"{name} must be a multiple of frame_interval, got {value} and {interval}")
        for name in ("first_steps", "pull_steps", "exploration_training_steps", "rounds", "trial", "ode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.explore_by not in ("trial", "pulling"):
            raise ValueError(f"explore_by must be 'trial' or 'pulling', got {self.explore_by!r}")
        if self.explore_by == "pulling" and self.ladder:
            raise ValueError("a ladder needs the generator in the exploration: explore_by must be 'trial'")
        if not self.growth >= 1:
            raise ValueError(f"growth must be 1 or more, got {self.growth}")
        if not 0 < self.surface_height <= self.explore_height:
            raise ValueError(
                "surface_height must be above 0 and at most explore_height, "
                f"got {self.surface_height} and {self.explore_height}"
            )
        for name in ("explore_share", "outside_share", "md_share", "ladder_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
