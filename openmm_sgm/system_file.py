"""system.toml: a folder of `systems/` becomes a `MolecularSystem`."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openmm
from openmm import app, unit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .biases import forces_that_look_like_biases, warn_of_biases
from .cvs import CV_KINDS, CollectiveVariable, as_cvs
from .files import check_size, read_toml
from .system import MolecularSystem, bin_counts
from .units import InputError, one_line
from .velocities import IntegratorKind
from .xml_files import force_field_path, inside, read_system

__all__ = ["load_system"]


class _Cv(BaseModel):
    """A [[cv]] table. Further keys are arguments of the CV's class, and are refused unless it has them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    kind: str
    bins: int | None = Field(default=None, ge=2)
    min: float | None = None
    max: float | None = None


class _SystemFile(BaseModel):
    """The whole of system.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    topology: str
    force_field: list[str] | None = Field(default=None, min_length=1)
    system: str | None = None
    nonbonded_method: Literal["NoCutoff", "CutoffNonPeriodic"] | None = None
    nonbonded_cutoff_nm: float | None = Field(default=None, gt=0)
    constraints: Literal["None", "HBonds", "AllBonds", "HAngles"] | None = None
    temperature_k: float = Field(gt=0)
    time_step_fs: float = Field(gt=0)
    friction_per_ps: float = Field(gt=0)
    integrator: IntegratorKind = "langevin_middle"
    cv: list[_Cv] = Field(min_length=1)


MOST_STRUCTURE = 64 << 20
"""Bytes of a structure's file."""
_FORCE_FIELD_KEYS = ("nonbonded_method", "nonbonded_cutoff_nm", "constraints")


def load_system(folder: Path, trust: bool = False) -> MolecularSystem:
    """Return the system described by `folder`/system.toml; its files must lie inside the folder.

    Nothing in the files is executed unless they are trusted: a force field with scripts, or a system with a
    `PythonForce`, is refused.

    trust : let the folder's files run code

    Raises
    ------
    InputError
        one sentence that says what is missing or wrong, with OpenMM's own words where it refuses the molecule.
    """
    folder = Path(folder)
    path = folder / "system.toml"
    try:
        table = read_toml(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} holds no system.toml") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {one_line(error)}") from None
    try:
        options = _SystemFile.model_validate(table)
    except ValidationError as error:
        raise InputError(f"{path}: {'; '.join(_in_words(e) for e in error.errors())}") from None
    topology, positions = _read_structure(folder, options.topology)
    cvs = [_build_cv(folder, table, positions) for table in options.cv]
    defaults = bin_counts(None, cvs)
    return MolecularSystem(
        name=options.name,
        topology=topology,
        system=_build_system(folder, options, topology, trust),
        positions=positions,
        cvs=as_cvs(cvs),
        temperature_k=options.temperature_k,
        time_step_fs=options.time_step_fs,
        friction_per_ps=options.friction_per_ps,
        integrator=options.integrator,
        bins=tuple(table.bins or default for table, default in zip(options.cv, defaults, strict=True)),
    )


def _in_words(problem: Any) -> str:
    """Return a problem that pydantic found, in the words of a user who knows the file and not pydantic."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, _SystemFile.model_fields, n=1)
        return f"there is no key '{key}'" + (f" (is '{close[0]}' meant?)" if close else "")
    return f"{key}: {problem['msg'].rstrip('.')}"


def _read_structure(folder: Path, name: str) -> tuple[app.Topology, np.ndarray]:
    """Return topology and positions (n_atoms, 3) in nm of a .pdb or .cif file."""
    readers = {".pdb": app.PDBFile, ".cif": app.PDBxFile}
    path = inside(folder, name)
    if path.suffix.lower() not in readers:
        raise InputError(f"'{name}' must be a {' or '.join(readers)} file")
    try:
        check_size(path, MOST_STRUCTURE)
        structure = readers[path.suffix.lower()](str(path))
        return structure.topology, structure.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    except Exception as error:  # the readers raise whatever the first broken field leads to
        raise InputError(f"'{name}' cannot be read: {one_line(error)}") from error


def _build_system(folder: Path, options: _SystemFile, topology: app.Topology, trust: bool) -> openmm.System:
    if (options.force_field is None) == (options.system is None):
        raise InputError("system.toml needs either force_field = [...] or system = 'system.xml'")
    if options.system is not None:
        given = [key for key in _FORCE_FIELD_KEYS if getattr(options, key) is not None]
        if given:
            raise InputError(f"{', '.join(given)} belong to force_field; '{options.system}' has them already")
        system = read_system(inside(folder, options.system), trust)
        warn_of_biases(system, forces_that_look_like_biases(system), stacklevel=3)
        return system
    arguments: dict[str, Any] = {
        "nonbondedMethod": getattr(app, options.nonbonded_method or "NoCutoff"),
        "constraints": None if options.constraints in (None, "None") else getattr(app, options.constraints),
    }
    if options.nonbonded_cutoff_nm is not None:
        arguments["nonbondedCutoff"] = options.nonbonded_cutoff_nm
    names = options.force_field or []
    files = [force_field_path(folder, name, trust) for name in names]
    try:
        return app.ForceField(*files).createSystem(topology, **arguments)
    except Exception as error:  # ValueError as a rule; a broken XML file raises anything
        raise InputError(f"{' + '.join(names)} does not fit '{options.topology}': {one_line(error)}") from error


def _build_cv(folder: Path, table: _Cv, positions: np.ndarray) -> CollectiveVariable:
    """Return the CV of a [[cv]] table; a `reference` is a structure file, by default the starting positions."""
    if table.kind not in CV_KINDS:
        raise InputError(f"CV '{table.name}': kind must be one of {', '.join(CV_KINDS)}, got '{table.kind}'")
    kind = CV_KINDS[table.kind]
    parameters = inspect.signature(kind).parameters
    arguments: dict[str, Any] = dict(table.model_extra or {})
    for key in arguments:
        if key not in parameters or key in ("minimum", "maximum"):
            known = [p for p in parameters if p not in ("name", "minimum", "maximum")]
            raise InputError(
                f"CV '{table.name}': a {table.kind} takes no '{key}', only {', '.join([*known, 'bins', 'min', 'max'])}"
            )
    for key, value in (("minimum", table.min), ("maximum", table.max)):
        if value is None:
            continue
        if key not in parameters:
            raise InputError(f"CV '{table.name}' is periodic and always covers its period: give no min or max")
        arguments[key] = value
    if "reference" in parameters:
        file = arguments.get("reference")
        if file is not None and not isinstance(file, str):
            raise InputError(f"CV '{table.name}': reference must be the name of a structure file")
        arguments["reference"] = positions if file is None else _read_structure(folder, file)[1]
    missing = [p for p, v in parameters.items() if v.default is v.empty and p != "name" and p not in arguments]
    if missing:
        raise InputError(f"CV '{table.name}': a {table.kind} needs {', '.join(missing)}")
    return kind(table.name, **arguments)
