"""`FrameReporter`: frames that a user's own simulation leaves behind while it runs, and how they are read back."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from openmm import app, unit

from .agreement import context_system
from .cvs import CollectiveVariable, as_cvs
from .dynamics import temperature_of
from .files import DAMAGE, read_arrays, read_json, replacing, write_atomically
from .from_simulation import openmm_topology
from .supported import check_supported
from .units import InputError, one_line

__all__ = ["FrameReporter", "RecordedFrames", "load_frames"]

SCHEMA_VERSION = 1
HEADER = "frames.json"
SHARD_FRAMES = 100
"""Frames written at once: what a kill can lose at most."""
UNITS = {"positions": "nm", "forces": "kJ/mol/nm", "energies": "kJ/mol", "steps": ""}


@dataclass(frozen=True)
class RecordedFrames:
    """Configurations of unbiased dynamics at one temperature, in time order.

    Attributes
    ----------
    positions : float64, shape (n, n_atoms, 3), nm
    forces : float64, shape (n, n_atoms, 3), kJ/mol/nm, or None where they were not recorded
    energies : float64, shape (n,), kJ/mol, potential; or None
    cvs : float64, shape (n, n_cvs), in the order of `cv_names`; n_cvs is 0 where they were not recorded
    steps : int64, shape (n,); the simulation's step count
    cv_names : of the columns of `cvs`
    temperature_k : of the dynamics, None where unknown
    left_out : one sentence for every file that could not be used
    """

    positions: np.ndarray
    forces: np.ndarray | None
    energies: np.ndarray | None
    cvs: np.ndarray
    steps: np.ndarray
    cv_names: tuple[str, ...] = ()
    temperature_k: float | None = None
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)


class FrameReporter:
    """An OpenMM reporter that keeps what a generator can be trained on: positions, forces, energies and CVs.

    The simulation runs as it would without it; only a state is read. It must be unbiased and at constant temperature:
    forces and energies are those that its integrator sees. Frames go to numbered files of `shard_frames` frames in a
    folder, each renamed into place when it is whole, so that `load_frames` can read them while the simulation runs and
    after it was killed; the last, incomplete one is written by `close`, or when the script ends. A reporter on a folder
    that already holds frames of the same molecule, CVs and temperature adds to them; one script at a time may do so.

    >>> simulation.reporters.append(FrameReporter("frames", 100, [Torsion("phi", (4, 6, 8, 14))]))
    >>> simulation.step(1_000_000)
    >>> load_frames("frames").positions  # nm

    Parameters
    ----------
    folder : where to write; it is made if there is none
    interval : steps between frames
    cvs : one to three collective variables, evaluated with mdtraj
    shard_frames : frames written at once, which are in memory until then

    Raises
    ------
    InputError
        for arguments that cannot be used; when the simulation starts, for one that the package does not support (see
        `check_supported`), or a folder that holds frames of another.
    """

    def __init__(
        self,
        folder: str | Path,
        interval: int,
        cvs: Sequence[CollectiveVariable],
        *,
        shard_frames: int = SHARD_FRAMES,
    ) -> None:
        for name, value in (("interval", interval), ("shard_frames", shard_frames)):
            if isinstance(value, bool) or not hasattr(value, "__index__") or index(value) < 1:
                raise InputError(f"{name} must be a whole number, 1 or more, got {value!r}")
        self._interval = index(interval)
        self._writer = _Writer(Path(folder), as_cvs(cvs), index(shard_frames))
        self._finalizer = weakref.finalize(self, self._writer.flush)

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:
        """Return the steps to the next frame and what it needs; called by the `Simulation`."""
        if self._writer.topology is None:
            self._writer.begin(simulation)
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": False, "include": ["positions", "forces", "energy"]}

    def report(self, simulation: app.Simulation, state: Any) -> None:
        """Take a frame; called by the `Simulation`."""
        nm, kj = unit.nanometer, unit.kilojoule_per_mole
        self._writer.add(
            positions=np.array(state.getPositions(asNumpy=True).value_in_unit(nm)),
            forces=np.array(state.getForces(asNumpy=True).value_in_unit(kj / nm)),
            energies=state.getPotentialEnergy().value_in_unit(kj),
            steps=simulation.currentStep,
        )

    def close(self) -> None:
        """Write the frames that are still in memory; further ones may follow."""
        self._writer.flush()


class _Writer:
    """Collects frames and writes them shard by shard."""

    def __init__(self, folder: Path, cvs: tuple[CollectiveVariable, ...], shard_frames: int) -> None:
        self.folder, self.cvs, self.shard_frames = folder, cvs, shard_frames
        self.topology: mdtraj.Topology | None = None
        self.tied = False
        self.frames: list[dict[str, Any]] = []
        self.number = 0

    def begin(self, simulation: app.Simulation) -> None:
        """Check the simulation, make the folder, and write the header or compare with the one that is there."""
        topology = openmm_topology(simulation.topology)
        positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
        self.tied = check_supported(topology, context_system(simulation), self.cvs, positions)
        particles = range(simulation.system.getNumParticles())
        header = {
            "schema_version": SCHEMA_VERSION,
            "masses_amu": [simulation.system.getParticleMass(i).value_in_unit(unit.dalton) for i in particles],
            "cvs": [
                {"name": cv.name, "kind": type(cv).__name__, "atoms": cv.atoms, "unit": cv.unit} for cv in self.cvs
            ],
            "temperature_k": temperature_of(simulation),
            "units": UNITS | {"cvs": "each CV's own"},
        }
        header = json.loads(json.dumps(header))
        path = self.folder / HEADER
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                there = _read_header(self.folder)
                differing = [key for key in header if there.get(key) != header[key]]
                if differing:
                    raise InputError(f"{self.folder} holds frames of another simulation, in {', '.join(differing)}")
            else:
                write_atomically(path, json.dumps(header, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"frames cannot be written to {self.folder}: {error.strerror}") from None
        self.number = max((_number(file) for file in _shards(self.folder)), default=-1) + 1
        self.topology = mdtraj.Topology.from_openmm(topology)

    def add(self, **frame: Any) -> None:
        self.frames.append(frame)
        if len(self.frames) >= self.shard_frames:
            self.flush()

    def flush(self) -> None:
        """Write what there is as the next shard."""
        if not self.frames:
            return
        arrays: dict[str, Any] = {name: np.array([frame[name] for frame in self.frames]) for name in UNITS}
        positions = arrays["positions"]
        if not self.tied:  # it may have drifted far, and mdtraj is in single precision
            positions = positions - positions.mean(axis=1, keepdims=True)
        trajectory = mdtraj.Trajectory(positions, self.topology)
        arrays["cvs"] = np.stack([cv.evaluate(trajectory) for cv in self.cvs], axis=1)
        path = self.folder / f"frames-{self.number:06d}.npz"
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
        self.number += 1
        self.frames.clear()


def load_frames(folder: str | Path) -> RecordedFrames:
    """Return the frames that a `FrameReporter` has written so far; nothing in the files is executed.

    Files that are damaged, and numbers that are missing between others, are left out and named in `left_out`.

    Raises
    ------
    InputError
        when the folder has no readable header, or no sound frame.
    """
    folder = Path(folder)
    header = _read_header(folder)
    n_atoms, names = len(header["masses_amu"]), tuple(str(cv["name"]) for cv in header["cvs"])
    parts, left_out, expected = [], [], 0
    for path in _shards(folder):
        if _number(path) > expected:
            left_out.append(f"{folder}: files {expected} to {_number(path) - 1} are missing")
        expected = _number(path) + 1
        try:
            parts.append(_read_shard(path, n_atoms, len(names)))
        except DAMAGE as error:
            left_out.append(f"{path} is damaged and left out: {one_line(error) or type(error).__name__}")
    if not parts:
        raise InputError("; ".join([f"{folder} holds no frames", *left_out]))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return RecordedFrames(**arrays, cv_names=names, temperature_k=header["temperature_k"], left_out=tuple(left_out))


def _read_shard(path: Path, n_atoms: int, n_cvs: int) -> dict[str, np.ndarray]:
    """Return the arrays of one file, or raise where they are not what the header promises."""
    held = read_arrays(path)
    arrays = {name: held[name] for name in (*UNITS, "cvs")}
    n = len(arrays["steps"])
    shapes = {
        "positions": (n, n_atoms, 3),
        "forces": (n, n_atoms, 3),
        "energies": (n,),
        "cvs": (n, n_cvs),
        "steps": (n,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape} where {shape} is expected")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds values that are not finite")
    return arrays


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        header = read_json(path)
        version = header["schema_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} holds no {HEADER}: give the folder that a FrameReporter has written") from None
    except DAMAGE as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from None
    if version != SCHEMA_VERSION:
        raise InputError(f"{path} is of schema version {version}, this program reads {SCHEMA_VERSION}")
    if not _is_complete(header):
        raise InputError(f"{path} is damaged: it names no masses, CVs or temperature")
    return dict(header)


def _is_complete(header: dict[str, Any]) -> bool:
    """Return whether a header has what is read of it, as what it should be."""
    masses, cvs, kelvin = (header.get(name) for name in ("masses_amu", "cvs", "temperature_k"))
    named = isinstance(cvs, list) and all(isinstance(cv, dict) and "name" in cv for cv in cvs)
    return named and isinstance(masses, list) and isinstance(kelvin, int | float | None) and "temperature_k" in header


def _shards(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("frames-*.npz") if path.stem.removeprefix("frames-").isdecimal()]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("frames-"))
