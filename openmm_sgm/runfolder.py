"""A run's folder: results, diagnostics for the report, and the state from which an interrupted run goes on."""

from __future__ import annotations

import csv
import json
import platform as host
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from openmm import app, unit
from safetensors import SafetensorError

from . import __version__
from .campaign import Campaign, Cost, Plan, Walker
from .explore import unreached
from .frames import MD, Frames
from .free_energy import Method, Surface, consistency, simulated_minus_generated
from .generator import Generator
from .hidden import HiddenStates, untrusted
from .importance import Draws
from .inject import Ledger
from .sampler import ScoreSampler
from .units import InputError, SamplingError, one_line, thermal_energy
from .windows import WindowGrid

__all__ = [
    "DAMAGE",
    "has_state",
    "load_state",
    "plain",
    "prepare",
    "read_status",
    "save_state",
    "versions",
    "write_json",
    "write_results",
    "write_status",
]

STATE_VERSION = 1
CHUNK = 4096
"""Bins whose distance from all windows is computed at once."""
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile, SafetensorError, csv.Error)
"""What reading a file raises whose content is not what was written."""
MOST_SAMPLES = 20_000
"""Configurations written to samples.dcd at most; more are thinned at random, which leaves the weights right."""
ALTERNATIVES: tuple[Method, ...] = ("mbar", "generator")
"""Estimators that are shown beside the combined one."""
MARKS = ("status.json", "result.json", "surface.csv", "state")


def prepare(folder: Path, resume: bool) -> None:
    """Make the folder, or refuse one that holds a run (or, to resume, holds none).

    Raises
    ------
    InputError
        one sentence; nothing has been written then.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder")
    holds = any((folder / mark).exists() for mark in MARKS)
    if holds and not resume:
        raise InputError(f"{folder} already holds a run: choose another --output, or continue it with --resume")
    if resume and not holds:
        raise InputError(f"{folder} holds no run to resume")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None


def has_state(folder: Path) -> bool:
    """Return whether a state has been saved; a run that ends before its exploration does leaves none."""
    return (folder / "state" / "state.json").is_file()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)


def write_status(folder: Path, state: str, sampler: ScoreSampler, budget: int, command: str) -> None:
    """Write status.json: readable at any moment, of a live, finished or killed run."""
    content = {
        "state": state,
        "force_evaluations": sampler.campaign.cost.total if sampler.campaign else 0,
        "budget": budget,
        "seed": sampler.seed,
        "ladder": sampler.options.ladder,
        "quick": sampler.options.explore_by == "pulling",
        "system": sampler.molecule.name,
        "history": sampler.history,
        "command": command,
    }
    write_json(folder / "status.json", plain(content))


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json.

    Raises
    ------
    InputError
        when there is none, or it cannot be read.
    """
    try:
        content = json.loads((folder / "status.json").read_text())
    except OSError:
        raise InputError(f"{folder} holds no run") from None
    except ValueError:
        raise InputError(f"{folder / 'status.json'} is damaged") from None
    if not isinstance(content, dict) or not {"state", "force_evaluations", "budget", "history", "command"} <= set(
        content
    ):
        raise InputError(f"{folder / 'status.json'} is damaged")
    return content


# results


def write_results(folder: Path, sampler: ScoreSampler, command: str) -> dict[str, Any]:
    """Write all files of a finished run except the report, and return the content of result.json."""
    campaign = sampler.campaign
    if campaign is None or not campaign.rounds or campaign.generator is None:
        raise InputError("the budget was too small for a single round: give more force evaluations")
    kt = thermal_energy(sampler.molecule.temperature_k)
    macro, macro_error, overlap = sampler.mbar()  # first: it needs the most memory
    combined = sampler.surface()
    combined.write_csv(folder / "surface.csv")
    draws = campaign.draw_weights()
    micro, micro_error = draws.free_energies()
    difference, rmse = consistency(micro, macro, kt, sampler.options.surface_height)
    chain = campaign.chain_of(MD)
    energy = simulated_minus_generated(chain, campaign.counted, draws)
    asked = np.isfinite(campaign.acceptance)
    too_high, unaffordable = unreached(campaign)
    hidden = sampler.hidden_states()
    result = {
        "system": sampler.molecule.name,
        "force_evaluations": {
            "simulation": campaign.cost.simulation,
            "generation": campaign.cost.generation,
            "total": campaign.cost.total,
        },
        "wall_seconds": {
            "simulate": campaign.cost.simulate_seconds,
            "train": campaign.cost.train_seconds,
            "generate": campaign.cost.generate_seconds,
            "total": sampler.wall_seconds,
        },
        "acceptance": _quantiles(campaign.acceptance[asked]),
        "ess": _quantiles(campaign.ess[asked]),
        "density_error_kt": campaign.density_error,
        "micro_macro_rmse_kj_mol": rmse,
        "simulated_minus_generated_kj_mol": dict(zip(("mean", "std_error"), energy, strict=True)),
        "std_error_rms_kj_mol": combined.error_below(sampler.options.surface_height),
        "platform": campaign.platform.name,
        "seed": sampler.seed,
        "versions": versions(),
        "windows": {
            "visited": len(campaign.walkers),
            "above_the_explored_height": [campaign.describe(w) for w in too_high],
            "left_by_the_budget": [campaign.describe(w) for w in unaffordable],
            "set_aside": {campaign.describe(w): k.failure for w, k in sorted(campaign.walkers.items()) if k.failure},
            "started_from": _count(k.started_from for k in campaign.walkers.values()),
        },
        "hidden_states": [
            f"{campaign.describe(d.first)} and {campaign.describe(d.second)}: {d}" for d in hidden.disagreements
        ],
        "history": sampler.history,
        "trainings": campaign.shared.trainings,
        "command": command,
    }
    write_json(folder / "result.json", plain(result))
    _write_samples(folder, sampler)
    campaign.ledger.write(folder / "ledger.csv")
    campaign.generator.save(folder / "generator")

    methods = {}
    for method in ALTERNATIVES:
        try:
            surface = sampler.surface(method=method)
        except SamplingError:  # no window's draws can be trusted: there is no such surface
            surface = combined.empty()
        methods[f"surface_{method}"] = surface.free_energy
        methods[f"surface_{method}_error"] = surface.std_error
    last = campaign.rounds[-1].frames
    diagnostics: dict[str, Any] = {
        "surface": combined.free_energy,
        "surface_error": combined.std_error,
        **methods,
        **{f"edges_{k}": edge for k, edge in enumerate(combined.edges)},
        "centers": campaign.grid.centers,
        "visited": np.array(sorted(campaign.walkers)),
        "micro": micro * kt,
        "micro_error": micro_error * kt,
        "macro": macro * kt,
        "macro_error": macro_error * kt,
        "untrusted": _untrusted_bins(combined, campaign, hidden),
        "difference": difference,
        "overlap": overlap,
        "acceptance": campaign.acceptance,
        "ess": campaign.ess,
        "simulated_energies": chain.energies,
        "simulated_windows": chain.windows,
        "generated_energies": last.energies,
        "generated_log_weights": last.log_weights,
        "generated_windows": last.windows,
    }
    with (folder / "diagnostics.npz").open("wb") as file:
        np.savez_compressed(file, **diagnostics)
    cvs = [{"name": cv.name, "unit": cv.unit, "period": cv.period} for cv in sampler.molecule.cvs]
    heights = {"surface": sampler.options.surface_height, "explored": sampler.options.explore_height}
    about = {"cvs": cvs, "heights_kj_mol": heights, "temperature_k": sampler.molecule.temperature_k}
    write_json(folder / "diagnostics.json", plain(about))
    return result


def _untrusted_bins(surface: Surface, campaign: Campaign, hidden: HiddenStates) -> np.ndarray:
    """Return the bins that rest on windows which disagree with others, bool, shape of the surface."""
    marked = np.zeros(surface.free_energy.size, dtype=bool)
    if hidden.flagged:
        points = np.stack(np.meshgrid(*surface.centers, indexing="ij"), axis=-1).reshape(len(marked), -1)
        sampled = np.flatnonzero(np.isfinite(campaign.free_energies))
        for start in range(0, len(marked), CHUNK):
            some = slice(start, start + CHUNK)
            marked[some] = untrusted(points[some], campaign.grid, sampled, hidden.flagged)
    return marked.reshape(surface.free_energy.shape)


def _write_samples(folder: Path, sampler: ScoreSampler) -> None:
    estimate, molecule = sampler.estimate(), sampler.molecule
    rng = np.random.default_rng(np.random.SeedSequence([sampler.seed, len(estimate.samples)]))
    rows = np.arange(len(estimate.samples))
    if len(rows) > MOST_SAMPLES:
        rows = np.sort(rng.choice(rows, MOST_SAMPLES, replace=False))
    frames, log_weights = estimate.samples.take(rows), estimate.log_weights[rows]
    log_weights = log_weights - np.logaddexp.reduce(log_weights)
    trajectory = molecule.trajectory(_superposed(frames.positions, molecule.positions))
    trajectory.save_dcd(str(folder / "samples.dcd"))
    with (folder / "topology.pdb").open("w") as file:
        app.PDBFile.writeFile(molecule.topology, molecule.positions * unit.nanometer, file, keepIds=True)
    with (folder / "weights.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(cv.name for cv in molecule.cvs), "log_weight"])
        for values, log_weight in zip(frames.cvs, log_weights, strict=True):
            writer.writerow([*(f"{v:.6f}" for v in values), f"{log_weight:.6f}"])


def _superposed(positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return positions (n, n_atoms, 3) turned and moved onto the reference (Kabsch 1976).

    mdtraj's own superposition gives up on molecules whose atoms lie in a plane.
    """
    centred = positions - positions.mean(axis=1, keepdims=True)
    target = reference - reference.mean(axis=0)
    u, _, vt = np.linalg.svd(centred.transpose(0, 2, 1) @ target)
    u[:, :, -1] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return np.asarray(centred @ (u @ vt))


def versions() -> dict[str, str]:
    """Return the versions of what computed the result."""
    names = ("openmm", "mdtraj", "pymbar", "torch", "numpy", "scipy")
    return {"openmm_sgm": __version__, "python": host.python_version()} | {n: metadata.version(n) for n in names}


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(values)), "p05": float(np.quantile(values, 0.05))}


def _count(items: Iterator[str] | Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return counts


def plain(value: Any) -> Any:
    """Return value with numbers that JSON has: arrays as lists, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


# state


def save_state(folder: Path, sampler: ScoreSampler) -> None:
    """Save what a run needs to go on after its last finished phase; the JSON is renamed into place last.

    Arrays go into files of their own number, so that a kill in between leaves the previous state whole.
    """
    campaign = sampler.campaign
    assert campaign is not None
    state = folder / "state"
    number = len(sampler.history)
    shared = campaign.shared
    levels = [
        _save_level(_level_folder(state, k), level, number) for k, level in enumerate((campaign, *campaign.hotter))
    ]
    campaign.ledger.write(state / f"ledger-{number}.csv")
    if campaign.generator is not None:
        campaign.generator.save(state / f"generator-{number}")
    content = {
        "version": STATE_VERSION,
        "number": number,
        "seed": sampler.seed,
        "setup": _setup(sampler),
        "sampler_seeds": sampler.seeds_spawned,
        "wall_seconds": sampler.wall_seconds,
        "history": sampler.history,
        "round": campaign.round,
        "plan": asdict(campaign.plan),
        "ledger_rows": len(campaign.ledger.rows),
        "cost": asdict(campaign.cost),
        "trainings": shared.trainings,
        "rotors": shared.rotors,
        "has_generator": campaign.generator is not None,
        "density_error": campaign.density_error,
        "levels": levels,
    }
    write_json(state / "state.json", plain(content))
    for k in range(len(levels)):
        _remove_older(_level_folder(state, k), number)


def _level_folder(state: Path, k: int) -> Path:
    """Return where the state of a temperature is: the target's in `state` itself, hotter ones' below it."""
    return state / f"hotter_{k}" if k else state


def _save_level(folder: Path, campaign: Campaign, number: int) -> dict[str, Any]:
    """Write the arrays of one temperature, and return what goes into the JSON."""
    committed = _committed_rounds(folder)
    folder.mkdir(exist_ok=True)
    nothing = Frames.empty(campaign.molecule.n_atoms, len(campaign.molecule.cvs))
    Frames.concatenate([nothing, *campaign.chain]).save(folder / f"chain-{number}.npz")
    Frames.concatenate([nothing, *(d.frames for d in campaign.trials)]).save(folder / f"trials-{number}.npz")
    for k, draws in enumerate(campaign.rounds):
        if k >= committed:
            draws.frames.save(folder / f"draws-{k}.npz")
    windows = np.array(sorted(campaign.walkers), dtype=np.int64)
    walkers = [campaign.walkers[w] for w in windows]
    velocities = [np.full_like(w.positions, np.nan) if w.velocities is None else w.velocities for w in walkers]
    with (folder / f"walkers-{number}.npz").open("wb") as file:
        np.savez(
            file,
            windows=windows,
            positions=np.array([w.positions for w in walkers]),
            velocities=np.array(velocities),
            free_energies=campaign.free_energies,
            acceptance=campaign.acceptance,
            ess=campaign.ess,
            drawn=np.array([draws.drawn for draws in campaign.rounds]),
            tried=np.sum([np.zeros(len(campaign.grid.centers), int), *(d.drawn for d in campaign.trials)], axis=0),
        )
    return {
        "seeds": campaign.seed.n_children_spawned,
        "origins": [w.started_from for w in walkers],
        "failures": [w.failure for w in walkers],
        "n_rounds": len(campaign.rounds),
        "burn_in": campaign.burn_in,
        "learnt_from": campaign.learnt_from,
    }


def _load_level(folder: Path, campaign: Campaign, number: int, content: dict[str, Any]) -> None:
    """Put one temperature where `_save_level` found it."""
    chain = Frames.load(folder / f"chain-{number}.npz")
    trials = Frames.load(folder / f"trials-{number}.npz")
    campaign.chain = [chain] if len(chain) else []
    with np.load(folder / f"walkers-{number}.npz", allow_pickle=False) as arrays:
        for k, window in enumerate(arrays["windows"]):
            velocities = arrays["velocities"][k]
            campaign.walkers[int(window)] = Walker(
                arrays["positions"][k],
                None if np.isnan(velocities).any() else velocities,
                content["origins"][k],
                content["failures"][k],
            )
        campaign.free_energies = arrays["free_energies"]
        campaign.acceptance, campaign.ess = arrays["acceptance"], arrays["ess"]
        drawn = arrays["drawn"]
        campaign.trials = [Draws(trials, arrays["tried"])] if len(trials) else []
    campaign.rounds = [Draws(Frames.load(folder / f"draws-{k}.npz"), drawn[k]) for k in range(content["n_rounds"])]
    campaign.burn_in, campaign.learnt_from = content["burn_in"], content["learnt_from"]
    old = campaign.seed
    campaign.seed = np.random.SeedSequence(old.entropy, spawn_key=old.spawn_key, n_children_spawned=content["seeds"])


def _remove_older(folder: Path, number: int) -> None:
    for old in folder.glob("*-*"):
        stem, _, saved = old.name.partition(".")[0].rpartition("-")
        if stem in ("chain", "trials", "walkers", "ledger", "generator") and saved.isdigit() and int(saved) < number:
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()


def _committed_rounds(folder: Path) -> int:
    """Return how many rounds' draws the state that stands in the folder counts on; they are never written again."""
    try:
        return int(json.loads((folder / "state.json").read_text())["levels"][0]["n_rounds"])
    except FileNotFoundError:
        return 0


def _setup(sampler: ScoreSampler) -> dict[str, Any]:
    """Return what a run must have in common with the one that goes on from its state, as it comes back from JSON."""
    molecule = sampler.molecule
    grid = WindowGrid.over(molecule.cvs, molecule.temperature_k)
    setup = {
        "system": molecule.physical_xml,
        "cvs": [[cv.name, type(cv).__name__, list(cv.atoms), cv.unit] for cv in molecule.cvs],
        "windows": [axis.tolist() for axis in grid.axes],
        "force_constants": grid.force_constants,
        "dynamics": [molecule.temperature_k, molecule.time_step_fs, molecule.friction_per_ps, molecule.integrator],
        "options": asdict(sampler.options),
    }
    return dict(json.loads(json.dumps(plain(setup))))


def load_state(folder: Path, sampler: ScoreSampler) -> None:
    """Put a new sampler of the same system and seed where the saved one was.

    Raises
    ------
    InputError
        when the state is damaged, or of another system, seed or version.
    """
    state = folder / "state"
    try:
        content = json.loads((state / "state.json").read_text())
        if content["version"] != STATE_VERSION:
            raise InputError(
                f"the state in {state} is of version {content['version']}, this program reads {STATE_VERSION}"
            )
        if content["seed"] != sampler.seed:
            raise InputError(f"the run in {folder} has seed {content['seed']}, not {sampler.seed}")
        differing = [key for key, value in _setup(sampler).items() if content["setup"].get(key) != value]
        if differing:
            raise InputError(f"the run in {folder} is of another setup, in its {', '.join(differing)}")
        number = content["number"]
        campaign = sampler.new_campaign()
        for k, level in enumerate((campaign, *campaign.hotter)):
            _load_level(_level_folder(state, k), level, number, content["levels"][k])
        shared = campaign.shared
        if content["has_generator"]:
            shared.generator = Generator.load(state / f"generator-{number}")
        shared.rotors = content["rotors"] and [(int(a), int(b), int(c)) for a, b, c in content["rotors"]]
        shared.cost, shared.trainings = Cost(**content["cost"]), content["trainings"]
        campaign.plan, campaign.round = Plan(**content["plan"]), content["round"]
        campaign.density_error = float("nan") if content["density_error"] is None else content["density_error"]
        shared.ledger = Ledger.read(state / f"ledger-{number}.csv", campaign.ledger.cv_names)
        if len(campaign.ledger.rows) != content["ledger_rows"]:
            raise ValueError("the ledger has lost rows")
        sampler.restore(campaign, content["history"], content["wall_seconds"], content["sampler_seeds"])
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"the state in {state} is damaged: {one_line(error)}") from None
