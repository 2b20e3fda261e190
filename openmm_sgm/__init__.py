"""Score-based generative models coupled to OpenMM simulations by exact Metropolis moves.

>>> import openmm_sgm as sgm
>>> sampler = sgm.ScoreSampler(simulation, [sgm.Torsion("phi", (4, 6, 8, 14))], temperature=300 * unit.kelvin, seed=1)
>>> sampler.run(force_evaluations=250_000)
>>> sampler.surface(bins=36).free_energy  # kJ/mol
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "basins": ("Basins", "find_basins"),
    "bursts": ("run_bursts",),
    "cells": ("CellGrid",),
    "confined": ("ConfinedTorsion", "confined_torsions"),
    "cvs": (
        "RMSD",
        "Angle",
        "CollectiveVariable",
        "ContactNumber",
        "CustomCV",
        "Distance",
        "ExpressionCV",
        "Position",
        "RadiusOfGyration",
        "Torsion",
        "from_bias_variable",
    ),
    "cv_functions": ("MLP", "LinearProjection", "tica_component"),
    "diffusion_maps": ("DiffusionMap", "fit_diffusion_map"),
    "features": ("Coordinates", "PairDistances"),
    "effective": ("EffectiveDynamics",),
    "free_energy": ("Estimate", "Surface"),
    "generator": ("Generator",),
    "guidance": ("GuidedLifting", "train_unconditional"),
    "hidden": ("HiddenStates", "Observable", "Umbrella", "find_hidden_states", "hidden_states_in_trajectories"),
    "learned": ("TorchCV", "diffusion_cv", "distil"),
    "lifting": (
        "ExtrapolationWarning",
        "KernelDensityLifting",
        "Lifted",
        "MonteCarloScoreLifting",
        "NearestLifting",
        "ScoreLifting",
    ),
    "options": ("SamplerOptions",),
    "kramers_moyal": ("estimate_drift_and_diffusion",),
    "networks": ("NetworkOptions",),
    "parsl_pool": ("ParslOptions", "ParslPool", "load_parsl_options"),
    "platforms": ("PlatformOptions",),
    "pretrain": ("Pretrained", "read_trajectories", "train_from_frames"),
    "reporter": ("FrameReporter", "RecordedFrames", "load_frames"),
    "propagator": ("fit_diffusion_on_surface",),
    "reduced": ("ReducedEquation",),
    "runfolder": ("keep",),
    "sampler": ("ScoreSampler",),
    "transitions": ("TransitionModel", "estimate_transitions"),
    "set_aside": ("load_failed", "save_failed"),
    "system": ("MolecularSystem",),
    "system_file": ("load_system",),
    "training": ("TrainingOptions",),
    "units": ("HiddenStateWarning", "InputError", "SamplingError"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `openmm-sgm --help` should not wait for torch and OpenMM."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
