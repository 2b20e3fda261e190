"""A run's folder: results, diagnostics for the report, and the state from which an interrupted run goes on."""

from __future__ import annotations

import contextlib
import csv
import json
import platform as host
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import openmm
from openmm import app, unit
from safetensors import SafetensorError

from . import __version__
from .basins import Basins, find_basins
from .campaign import Campaign, Cost, Plan, Walker
from .explore import unreached
from .frames import MD, Frames
from .free_energy import Method, Surface, consistency, simulated_minus_generated
from .generator import Generator
from .geometry import compare_geometry, structures_of_bins, superposed
from .hidden import HiddenStates, untrusted
from .importance import Draws
from .inject import Ledger
from .journal import Journal
from .records import digest, file_digest, sync_folder
from .sampler import ScoreSampler
from .status import locked, write_json
from .system import MolecularSystem
from .units import InputError, SamplingError, one_line, thermal_energy
from .windows import WindowGrid

__all__ = [
    "DAMAGE",
    "has_state",
    "keep",
    "load_state",
    "plain",
    "prepare",
    "save_state",
    "versions",
    "write_results",
    "write_status",
]

STATE_VERSION = 2
OLDER_VERSION = 1
"""Of a state without digests, platform and the order of windows; it is read, and goes on equivalently."""
CHUNK = 4096
"""Bins whose distance from all windows is computed at once."""
DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError),
    *(BadZipFile, zlib.error, SafetensorError, csv.Error),
)
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
    """Return whether a state has been saved; the first is saved before the exploration."""
    return (folder / "state" / "state.json").is_file()


@contextlib.contextmanager
def keep(sampler: ScoreSampler, folder: str | Path, resume: bool | None = None) -> Iterator[int]:
    """Within, all that a sampler computes is kept in a folder at once; a run that stands there goes on.

    >>> with sgm.keep(sampler, "run1") as spent:
    ...     sampler.run(force_evaluations=250_000 - spent)

    Killed at any moment, the same script goes on where it was. With one seed, number of workers and platform (Reference
    or CPU) the results are those of a run that nothing has disturbed, bit for bit.

    Parameters
    ----------
    resume : True or False to insist that the folder holds a run, or none; by default either will do

    Returns
    -------
    the force evaluations that the run had spent

    Raises
    ------
    InputError
        where another process is at work in the folder, it cannot be written to, or its state is damaged or of another
        system, seed or setup. The folder is as it was then.
    """
    folder = Path(folder)
    prepare(folder, has_state(folder) if resume is None else resume)
    with locked(folder):
        if has_state(folder) and resume is not False:
            load_state(folder, sampler)
        elif resume is False:
            prepare(folder, resume)  # another process may have begun a run in the meantime
        for path in folder.rglob("*.tmp"):  # what a killed process was writing
            path.unlink()
        journal, theirs = Journal(folder / "journal"), sampler.on_round

        def after_phase(sampler: ScoreSampler) -> None:
            save_state(folder, sampler)
            journal.clear()
            if theirs is not None:
                theirs(sampler)

        sampler.on_round, sampler.journal = after_phase, journal
        try:
            yield sampler.campaign.cost.total if sampler.campaign else 0
        finally:
            sampler.on_round, sampler.journal = theirs, None


def write_status(
    folder: Path, state: str, sampler: ScoreSampler, budget: int, command: str, warnings: list[str] | None = None
) -> None:
    """Write status.json: readable at any moment, of a live, finished or killed run."""
    campaign = sampler.campaign
    walkers = dict(campaign.walkers) if campaign else {}
    content = {
        "state": state,
        "phase": _phase(sampler),
        "force_evaluations": campaign.cost.total if campaign else 0,
        "budget": budget,
        "seed": sampler.seed,
        "workers": sampler.workers,
        "ladder": sampler.options.ladder,
        "quick": sampler.options.explore_by == "pulling",
        "system": sampler.molecule.name,
        "history": sampler.history,
        "windows": len(walkers),
        "set_aside": {campaign.describe(w): k.failure for w, k in walkers.items() if k.failure} if campaign else {},
        "warnings": warnings or [],
        "command": command,
    }
    write_json(folder / "status.json", plain(content))


def _phase(sampler: ScoreSampler) -> str:
    campaign = sampler.campaign
    if campaign is None:
        return "preparation"
    if not campaign.plan.rounds:
        return "estimation"
    if not campaign.round:
        return "exploration" if not campaign.plan.explored else "round 1"
    return f"round {campaign.round}" if campaign.plan.explored else f"round {campaign.round + 1}"


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
    basins = _basins(sampler, combined)
    structures = structures_of_bins(sampler.molecule, sampler.estimate())
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
        "units": {
            "run": campaign.cost.units_run,
            "retried": campaign.cost.units_retried,
            "set_aside": campaign.cost.units_set_aside,
        },
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
        "confined_torsions": [str(torsion) for torsion in sampler.confined_torsions()],
        **_described(basins, sampler),
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
        **structures,
        **compare_geometry(sampler.molecule, chain, last),
        **_arrays(basins),
    }
    with (folder / "diagnostics.npz").open("wb") as file:
        np.savez_compressed(file, **diagnostics)
    cvs = [{"name": cv.name, "unit": cv.unit, "period": cv.period} for cv in sampler.molecule.cvs]
    heights = {"surface": sampler.options.surface_height, "explored": sampler.options.explore_height}
    about = {
        "cvs": cvs,
        "heights_kj_mol": heights,
        "temperature_k": sampler.molecule.temperature_k,
        "elements": ["X" if a.element is None else a.element.symbol for a in sampler.molecule.topology.atoms()],
        "bonds": sampler.molecule.bonds,
    }
    write_json(folder / "diagnostics.json", plain(about))
    return result


def _basins(sampler: ScoreSampler, surface: Surface) -> Basins | None:
    """Return the basins below the height that the surface is asked for, None where no bin is sampled."""
    if not np.isfinite(surface.free_energy).any():
        return None
    molecule = sampler.molecule
    periodic = [cv.period is not None for cv in molecule.cvs]
    return find_basins(surface, periodic, molecule.temperature_k, sampler.options.surface_height)


def _described(basins: Basins | None, sampler: ScoreSampler) -> dict[str, Any]:
    """Return what result.json says of the basins and of the barriers between them; values of CVs in their units."""
    if basins is None:
        return {"basins": [], "barriers": []}
    names = [cv.name for cv in sampler.molecule.cvs]
    found = basins.populations(sampler.estimate())
    return {
        "basins": [
            {
                "label": basin.label,
                "minimum": dict(zip(names, basin.minimum, strict=True)),
                "population": basin.population,
                "std_error": basin.population_error,
                "free_energy_kj_mol": basin.free_energy,
                "free_energy_std_error_kj_mol": basin.free_energy_error,
            }
            for basin in found
        ],
        "barriers": [
            {
                "between": [found[barrier.first].label, found[barrier.second].label],
                "at": dict(zip(names, basins.point(barrier.top), strict=True)),
                "free_energy_kj_mol": barrier.height,
                "std_error_kj_mol": barrier.std_error,
            }
            for barrier in basins.barriers
        ],
    }


def _arrays(basins: Basins | None) -> dict[str, np.ndarray]:
    """Return the bins' basins, and the bins (number of the barrier, flat index) high on the path over each barrier."""
    if basins is None:
        return {}
    flanks = [(k, int(b)) for k, barrier in enumerate(basins.barriers) for b in basins.flank(barrier)]
    return {"basins": basins.basin_of, "barrier_bins": np.array(flanks, dtype=np.int64).reshape(-1, 2)}


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
    trajectory = molecule.trajectory(superposed(frames.positions, molecule.positions))
    trajectory.save_dcd(str(folder / "samples.dcd"))
    with (folder / "topology.pdb").open("w") as file:
        app.PDBFile.writeFile(molecule.topology, molecule.positions * unit.nanometer, file, keepIds=True)
    with (folder / "weights.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(cv.name for cv in molecule.cvs), "log_weight"])
        for values, log_weight in zip(frames.cvs, log_weights, strict=True):
            writer.writerow([*(f"{v:.6f}" for v in values), f"{log_weight:.6f}"])


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

    Arrays go into files of their own number, so that a kill in between leaves the previous state whole. All of it is on
    the disk when this returns.
    """
    campaign = sampler.campaign
    assert campaign is not None
    state = folder / "state"
    state.mkdir(exist_ok=True)
    standing = _standing(state)
    number = standing.get("number", -1) + 1
    shared = campaign.shared
    temperatures = (campaign, *campaign.hotter)
    committed = [int(level["n_rounds"]) for level in standing.get("levels", [])] or [0] * len(temperatures)
    levels = [_save_level(_level_folder(state, k), level, number, committed[k]) for k, level in enumerate(temperatures)]
    campaign.ledger.write(state / f"ledger-{number}.csv")
    if campaign.generator is not None:
        campaign.generator.save(state / f"generator-{number}")
    content = plain(
        {
            "version": STATE_VERSION,
            "number": number,
            "seed": sampler.seed,
            "setup": _setup(sampler),
            "platform": campaign.platform.name,
            "sampler_seeds": sampler.seeds_spawned,
            "wall_seconds": sampler.wall_seconds,
            "history": sampler.history,
            "round": campaign.round,
            "plan": asdict(campaign.plan),
            "ledger_rows": len(campaign.ledger),
            "cost": asdict(campaign.cost),
            "trainings": shared.trainings,
            "rotors": shared.rotors,
            "has_generator": campaign.generator is not None,
            "density_error": campaign.density_error,
            "levels": levels,
        }
    )
    content["files"] = _digests(state, content, standing.get("files", {}))
    content["digest"] = digest(json.dumps(content, sort_keys=True))
    write_json(state / "state.json", content, durable=True)
    for k in range(len(levels)):
        _remove_older(_level_folder(state, k), number)


def _files(state: Path, content: dict[str, Any]) -> Iterator[Path]:
    """Yield the files that a state's JSON speaks of."""
    number = content["number"]
    for k, level in enumerate(content["levels"]):
        folder = _level_folder(state, k)
        yield from (folder / f"{name}-{number}.npz" for name in ("chain", "trials", "walkers"))
        yield from (folder / f"draws-{draw}.npz" for draw in range(level["n_rounds"]))
    yield state / f"ledger-{number}.csv"
    if content["has_generator"]:
        yield from (state / f"generator-{number}" / f"generator.{kind}" for kind in ("json", "safetensors"))


def _digests(state: Path, content: dict[str, Any], known: dict[str, str]) -> dict[str, str]:
    """Flush the files of a state to the disk and return their digests by name; those of older draws are known."""
    found = {}
    for path in _files(state, content):
        name = path.relative_to(state).as_posix()
        old = known.get(name) if path.name.startswith("draws-") else None
        found[name] = old or file_digest(path, durable=True)
    for folder in {path.parent for path in _files(state, content)}:
        sync_folder(folder)
    return found


def _level_folder(state: Path, k: int) -> Path:
    """Return where the state of a temperature is: the target's in `state` itself, hotter ones' below it."""
    return state / f"hotter_{k}" if k else state


def _save_level(folder: Path, campaign: Campaign, number: int, committed: int) -> dict[str, Any]:
    """Write the arrays of one temperature, and return what goes into the JSON.

    committed : rounds whose draws the state that stands in the folder counts on; they are never written again
    """
    folder.mkdir(exist_ok=True)
    nothing = Frames.empty(campaign.molecule.n_atoms, len(campaign.molecule.cvs))
    Frames.concatenate([nothing, *campaign.chain]).save(folder / f"chain-{number}.npz")
    Frames.concatenate([nothing, *(d.frames for d in campaign.trials)]).save(folder / f"trials-{number}.npz")
    for k, draws in enumerate(campaign.rounds):
        if k >= committed:
            draws.frames.save(folder / f"draws-{k}.npz")
    windows = np.array(list(campaign.walkers), dtype=np.int64)  # their order decides which is visited first
    walkers = list(campaign.walkers.values())
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
        "parts": [len(part) for part in campaign.chain],
        "burn_in": campaign.burn_in,
        "learnt_from": campaign.learnt_from,
    }


def _load_level(folder: Path, campaign: Campaign, number: int, content: dict[str, Any]) -> None:
    """Put one temperature where `_save_level` found it."""
    chain = Frames.load(folder / f"chain-{number}.npz")
    trials = Frames.load(folder / f"trials-{number}.npz")
    ends = np.cumsum(content.get("parts", [len(chain)])).tolist()  # sums over parts must round as they did
    if ends and ends[-1] != len(chain):
        raise ValueError("the chain has lost frames")
    campaign.chain = [chain[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]
    with np.load(folder / f"walkers-{number}.npz", allow_pickle=False) as arrays:
        held = zip(arrays["windows"], arrays["positions"], arrays["velocities"], strict=True)
        for k, (window, positions, velocities) in enumerate(held):
            campaign.walkers[int(window)] = Walker(
                positions,
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


def _standing(state: Path) -> dict[str, Any]:
    """Return the JSON of the state that stands in the folder, or nothing."""
    try:
        return dict(json.loads((state / "state.json").read_text()))
    except FileNotFoundError:
        return {}


def _setup(sampler: ScoreSampler) -> dict[str, Any]:
    """Return what a run must have in common with the one that goes on from its state, as it comes back from JSON."""
    molecule = sampler.molecule
    grid = WindowGrid.over(molecule.cvs, molecule.temperature_k, stiff=molecule.stiff_cvs)
    setup = {
        "system": molecule.physical_xml,
        "cvs": [[cv.name, type(cv).__name__, list(cv.atoms), cv.unit] for cv in molecule.cvs],
        "cv_definitions": _definitions(molecule),
        "windows": [axis.tolist() for axis in grid.axes],
        "force_constants": grid.force_constants,
        "dynamics": [molecule.temperature_k, molecule.time_step_fs, molecule.friction_per_ps, molecule.integrator],
        "options": asdict(sampler.options),
    }
    return dict(json.loads(json.dumps(plain(setup))))


def _definitions(molecule: MolecularSystem) -> list[str]:
    """Return the XML of each CV's force; of one that runs Python, which has none to compare, its value at the start."""
    forces = [cv.force() for cv in molecule.cvs]
    values = molecule.evaluate_cvs(molecule.positions[None])[0]
    return [
        f"{value:.4g}" if type(force).__name__ == "PythonForce" else openmm.XmlSerializer.serialize(force)
        for force, value in zip(forces, values, strict=True)
    ]


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
        version = content["version"]
        if version not in (OLDER_VERSION, STATE_VERSION):
            raise InputError(
                f"the state in {state} is of version {version}, this program reads {OLDER_VERSION} and "
                f"{STATE_VERSION}: use the version of the program that began the run"
            )
        if content["seed"] != sampler.seed:
            raise InputError(f"the run in {folder} has seed {content['seed']}, not {sampler.seed}")
        setup = content["setup"]
        if version == OLDER_VERSION and len(setup["dynamics"]) == 3:  # there was one integrator then
            setup["dynamics"].append("langevin_middle")
        now = _setup(sampler)
        setup.setdefault("cv_definitions", now["cv_definitions"])  # states of before had none
        differing = [key for key, value in now.items() if setup.get(key) != value]
        if differing:
            raise InputError(f"the run in {folder} is of another setup, in its {', '.join(differing)}")
        if version == STATE_VERSION:
            _check_digests(state, content)
        number = content["number"]
        campaign = sampler.new_campaign(_platform_here(content.get("platform"), sampler))
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
        if len(campaign.ledger) != content["ledger_rows"]:
            raise ValueError("the ledger has lost rows")
        sampler.restore(campaign, content["history"], content["wall_seconds"], content["sampler_seeds"])
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"the state in {state} is damaged: {one_line(error)}") from None


def _check_digests(state: Path, content: dict[str, Any]) -> None:
    """Raise `ValueError` for a state of which a file, or the JSON, is not what was written."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    if digest(json.dumps(rest, sort_keys=True)) != content["digest"]:
        raise ValueError("state.json is not what was written")
    for path in _files(state, content):
        name = path.relative_to(state).as_posix()
        if file_digest(path) != content["files"][name]:
            raise ValueError(f"{name} is not what was written")


def _platform_here(name: str | None, sampler: ScoreSampler) -> str | None:
    """Return the platform that a run has been on if it is here too."""
    here = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
    if name is None or name in here:
        return name
    sampler.progress(f"the run was on the platform {name}, which is not here: it goes on with the fastest there is")
    return None
