"""`openmm-sgm compare`: methods on one system at a series of budgets; all force evaluations count, wall time beside.

>>> result = compare(load_system(folder), Path("runs/compare"), budgets=budget_series(500_000), seeds=3)
>>> result.rows[0]  # {"method": "umbrella", "seed": 1, "budget": 50000, "rmse_kj_mol": ..., ...}

Runs go one after the other, so that each has the machine's cores to itself. What a run gives is kept in `rows/` as soon
as it has ended, and a comparison that was interrupted goes on with what is missing.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .executors import make_executor
from .files import DAMAGE, read_json, replacing
from .folders import COMPARISON, names_in, refuse_strangers
from .free_energy import Surface
from .measure import LIMIT_KJ_MOL, SurfaceError, load_reference, mean_reference, surface_error
from .options import SamplerOptions
from .rivals import METHODS, Method, Snapshot
from .runfolder import plain, versions
from .status import write_json
from .system import MolecularSystem
from .umbrella import surface_bins
from .units import InputError, one_line

__all__ = [
    "Comparison",
    "budget_series",
    "check_methods",
    "compare",
    "read_comparison",
]

MOST_ROWS = 256 << 20
"""Bytes that the surfaces of a comparison may have as JSON."""
SERIES = (50_000, 100_000, 250_000, 500_000, 1_000_000, 2_000_000)
COLUMNS = (
    "method", "seed", "budget", "force_evaluations", "seconds", "rmse_kj_mol", "coverage", "error_bar_ratio",
    "within_two_se", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What a comparison has found.

    Attributes
    ----------
    rows : a dict for each method, seed and budget, with the keys of `COLUMNS` and `extras`
    failures : method -> why it has fewer rows than asked for, in words
    about : what was compared: system, budgets, seeds, workers, reference, versions, settings of the methods
    """

    rows: list[dict[str, Any]]
    failures: dict[str, list[str]]
    about: dict[str, Any]


def read_comparison(folder: Path) -> Comparison:
    """Return what a comparison has written to its folder.

    Raises
    ------
    InputError
        where there is none, or it cannot be read.
    """
    path = folder / "compare.json"
    refuse_strangers(folder, COMPARISON)
    try:
        content = read_json(path, MOST_ROWS)
        return Comparison(content["rows"], content["failures"], content["about"])
    except FileNotFoundError:
        raise InputError(f"{folder} holds no finished comparison: {path.name} is missing") from None
    except DAMAGE as error:
        raise InputError(f"{path} is damaged: {type(error).__name__} {one_line(error)}") from None


def budget_series(largest: int) -> list[int]:
    """Return 50k, 100k, 250k, 500k, 1M, 2M up to `largest`, and that itself."""
    if largest < 1:
        raise InputError(f"the number of force evaluations must be above zero, got {largest}")
    return [b for b in SERIES if b < largest] + [largest]


def check_methods(names: Sequence[str]) -> list[str]:
    """Return the names without repetitions, in the order of the table, or refuse one that it does not hold."""
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise InputError(f"there is no method '{unknown[0]}': choose from {', '.join(METHODS)}")
    if not names:
        raise InputError(f"give at least one method of {', '.join(METHODS)}")
    return [name for name in METHODS if name in names]


# the driver


def compare(
    molecule: MolecularSystem,
    folder: Path,
    *,
    methods: Sequence[str] | None = None,
    budgets: Sequence[int] = SERIES,
    largest: Mapping[str, int] | None = None,
    seeds: int = 3,
    workers: int = 0,
    reference: Path | None = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
    analyse: Callable[[str, Snapshot], dict[str, Any]] | None = None,
    score_options: SamplerOptions | None = None,
    command: str = "",
) -> Comparison:
    """Run the methods that have no row yet, and write compare.csv and compare.json; return what they hold.

    Parameters
    ----------
    folder : new, or with `resume` one that holds a comparison of the same system, budgets and workers; further methods
        and seeds may be added to that, and runs that failed are tried again
    methods : names of `METHODS`; None for all
    largest : method -> the largest budget that it is run with; the others get all
    seeds : seeds 1 to this are run
    reference : a file like surface.csv; without one the mean of the methods' longest runs
    analyse : called with (method, snapshot) for each; what it returns is kept in the row's `extras`
    score_options : of the methods that train a generator, for tests and studies

    Raises
    ------
    InputError
        before anything is run; a method that fails afterwards gets a sentence in `failures` instead.
    """
    names = check_methods(list(METHODS) if methods is None else methods)
    budgets = sorted(set(budgets))
    if not budgets or budgets[0] < 1:
        raise InputError("budgets must be whole numbers above zero")
    largest = dict(largest or {})
    check_methods([*names, *largest])
    if seeds < 1:
        raise InputError(f"the number of seeds must be 1 or more, got {seeds}")
    if workers < 0:
        raise InputError(f"workers must be 0 or more, got {workers}")
    given = None if reference is None else load_reference(reference, molecule)
    _prepare(folder, resume, _setup(molecule, budgets, workers, score_options))
    for name in names:
        for seed in range(1, seeds + 1):
            for share in _shares(name, budgets, largest):
                _run_unit(molecule, folder, name, seed, share, workers, say, analyse, score_options)
    result = _collect(molecule, folder, names, budgets, largest, seeds, workers, given, reference, command)
    _write_csv(folder / "compare.csv", result.rows)
    write_json(folder / "compare.json", plain(asdict(result)))
    return result


def _shares(name: str, budgets: Sequence[int], largest: Mapping[str, int]) -> list[list[int]]:
    """Return the budgets of each run of a method: all in one where snapshots are nested."""
    own = [budget for budget in budgets if budget <= largest.get(name, budget)]
    return [own] if METHODS[name].nested and own else [[budget] for budget in own]


def _setup(
    molecule: MolecularSystem, budgets: Sequence[int], workers: int, options: SamplerOptions | None
) -> dict[str, Any]:
    """Return what a comparison must have in common with the one it goes on from, as it comes back from JSON."""
    setup = {
        "system": molecule.physical_xml,
        "cvs": [[cv.name, type(cv).__name__, list(cv.atoms), cv.unit, cv.minimum, cv.maximum] for cv in molecule.cvs],
        "bins": list(molecule.bins),
        "windows": [[cv.windows, cv.force_constant] for cv in molecule.cvs],
        "dynamics": [molecule.temperature_k, molecule.time_step_fs, molecule.friction_per_ps, molecule.integrator],
        "budgets": list(budgets),
        "workers": workers,
        "options": asdict(options or SamplerOptions()),
        "methods": {name: method.settings for name, method in METHODS.items()},
    }
    return dict(json.loads(json.dumps(plain(setup))))


def _prepare(folder: Path, resume: bool, setup: dict[str, Any]) -> None:
    path = folder / "setup.json"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder")
    refuse_strangers(folder, COMPARISON)
    if path.exists() and not resume:
        raise InputError(f"{folder} already holds a comparison: choose another --output, or continue it with --resume")
    if not resume and (theirs := names_in(folder, COMPARISON)):
        raise InputError(f"a comparison would write over {folder / theirs[0]}: choose another --output")
    if resume:
        try:
            before = read_json(path)
            differing = [key for key, value in setup.items() if before.get(key) != value]
        except FileNotFoundError:
            raise InputError(f"{folder} holds no comparison to resume") from None
        except DAMAGE as error:
            raise InputError(f"{path} is damaged: {one_line(error)}") from None
        if differing:
            raise InputError(f"the comparison in {folder} is of another setup, in its {', '.join(differing)}")
    try:
        (folder / "rows").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None
    if not path.exists():
        write_json(path, setup)


def _run_unit(
    molecule: MolecularSystem,
    folder: Path,
    name: str,
    seed: int,
    budgets: Sequence[int],
    workers: int,
    say: Callable[[str], None],
    analyse: Callable[[str, Snapshot], dict[str, Any]] | None,
    options: SamplerOptions | None,
) -> None:
    """Run one method with one seed unless its rows are there, and write them; a failure is written down, not raised."""
    path = _unit_path(folder, name, seed, budgets)
    before = _read_unit(path, molecule.bins)
    if before is not None and before["failure"] is None:
        return
    method, snapshots, failure = METHODS[name], [], _missing(METHODS[name])
    if failure is None:
        try:
            with make_executor(workers) as executor:
                arguments = {"options": options} if options is not None and METHODS[name].generates else {}
                for snapshot in method.run(molecule, seed, budgets, executor, workers, **arguments):
                    extras = dict(snapshot.extras) | (analyse(name, snapshot) if analyse else {})
                    snapshots.append(_as_json(snapshot, extras))
                    spent = f"{snapshot.force_evaluations:,} force evaluations, {snapshot.seconds:.0f} s"
                    say(f"{name}, seed {seed}: {spent}")
        except Exception as error:  # a rival that fails must not take the others with it
            failure = f"{type(error).__name__}: {one_line(error)}"
    if failure is not None:
        say(f"{name}, seed {seed}: {failure}")
    write_json(path, plain({"failure": failure, "snapshots": snapshots}))


def _missing(method: Method) -> str | None:
    """Return why a method cannot be run here, or None."""
    if method.needs is None or importlib.util.find_spec(method.needs) is not None:
        return None
    return f"{method.needs} is not installed (pip install 'openmm-sgm[{method.extra}]')"


def _rival_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the optional packages that the methods use, where they are installed."""
    found = {}
    for needed in (METHODS[name].needs for name in names):
        if needed is not None:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[needed] = metadata.version(needed)
    return found


def _unit_path(folder: Path, name: str, seed: int, budgets: Sequence[int]) -> Path:
    budget = "" if METHODS[name].nested else f"-{budgets[0]}"
    return folder / "rows" / f"{name}-seed{seed}{budget}.json"


def _read_unit(path: Path, bins: tuple[int, ...]) -> dict[str, Any] | None:
    """Return what a run has left; None where there is nothing, or nothing that can be read."""
    try:
        content = read_json(path, MOST_ROWS)
        for snapshot in content["snapshots"]:
            shapes = {np.array(snapshot[name], dtype=float).shape for name in ("free_energy", "std_error")}
            numbers = (snapshot["budget"], snapshot["force_evaluations"], snapshot["seconds"])
            if shapes != {bins} or not all(isinstance(number, int | float) for number in numbers):
                return None
            if not isinstance(snapshot["note"], str) or not isinstance(snapshot["extras"], dict):
                return None
        return content if "failure" in content else None
    except DAMAGE:
        return None


def _as_json(snapshot: Snapshot, extras: dict[str, Any]) -> dict[str, Any]:
    return {
        "budget": snapshot.budget,
        "force_evaluations": snapshot.force_evaluations,
        "seconds": snapshot.seconds,
        "note": snapshot.note,
        "extras": extras,
        "free_energy": snapshot.surface.free_energy,
        "std_error": snapshot.surface.std_error,
    }


def _collect(
    molecule: MolecularSystem,
    folder: Path,
    names: Sequence[str],
    budgets: Sequence[int],
    largest: Mapping[str, int],
    seeds: int,
    workers: int,
    given: np.ndarray | None,
    path: Path | None,
    command: str,
) -> Comparison:
    """Measure what the runs of `rows/` have left against the reference."""
    edges, cv_names, units = surface_bins(molecule)
    found: list[tuple[str, int, dict[str, Any], Surface]] = []
    failures: dict[str, list[str]] = {}
    for name in names:
        for seed in range(1, seeds + 1):
            for share in _shares(name, budgets, largest):
                unit = _read_unit(_unit_path(folder, name, seed, share), molecule.bins)
                if unit is None:
                    unit = {"failure": "its rows cannot be read", "snapshots": []}
                if unit["failure"]:
                    at = "" if METHODS[name].nested else f" at {share[0]:,} force evaluations"
                    failures.setdefault(name, []).append(f"seed {seed}{at}: {unit['failure']}")
                for snapshot in unit["snapshots"]:
                    values, errors = (np.array(snapshot[k], dtype=float) for k in ("free_energy", "std_error"))
                    surface = Surface(values, errors, tuple(edges), tuple(cv_names), tuple(units))
                    found.append((name, seed, snapshot, surface))
    chosen: list[str] = []
    described = f"the file {path}" if given is not None else "none: no method has a surface"
    if given is None and found:
        longest = max(snapshot["budget"] for _, _, snapshot, _ in found)
        surfaces: dict[str, list[np.ndarray]] = {}
        for name, _, snapshot, surface in found:
            if snapshot["budget"] == longest and np.isfinite(surface.free_energy).any():
                surfaces.setdefault(name, []).append(surface.free_energy)
        if surfaces:
            given, chosen = mean_reference(surfaces)
            described = (
                f"the mean of the runs of {longest:,} force evaluations of {', '.join(chosen)}, each method counting "
                "once; every method is compared with a mean that holds itself, so small errors are flattered"
            )
    rows = []
    for name, seed, snapshot, surface in found:
        nothing = SurfaceError(float("nan"), 0.0, float("nan"), float("nan"))
        error = nothing if given is None else surface_error(surface, given)
        known = {key: snapshot[key] for key in ("budget", "force_evaluations", "seconds", "note", "extras")}
        rows.append({"method": name, "seed": seed} | known | asdict(error))
    about = {
        "system": molecule.name,
        "budgets": list(budgets),
        "seeds": seeds,
        "workers": workers,
        "reference": described,
        "reference_methods": chosen,
        "limit_kj_mol": LIMIT_KJ_MOL,
        "settings": {name: METHODS[name].settings for name in names},
        "nested": {name: METHODS[name].nested for name in names},
        "versions": versions() | _rival_versions(names),
        "command": command,
    }
    return Comparison(rows, failures, about)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows without their extras; numbers that are not known are empty."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            values = [row[column] for column in COLUMNS]
            writer.writerow(["" if isinstance(v, float) and np.isnan(v) else v for v in values])
