"""Walkers that were given up, kept in files, so that what became of them can be looked into."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .files import DAMAGE, read_arrays, read_json, replacing
from .simulate import Segment
from .status import write_json
from .units import InputError, one_line

__all__ = ["load_failed", "save_failed"]

_ARRAYS = ("positions", "velocities", "center", "force_constants", "pull_from")
_NUMBERS = ("walker", "pull_steps", "equilibration_steps", "steps", "frame_interval", "seed")


def save_failed(folder: Path, segment: Segment, reason: str, temperature_k: float | None = None) -> Path:
    """Write a segment as it was started, with the reason why it was given up, and return the path of its JSON file.

    `window-<walker>-seed-<seed>.npz` holds the arrays of `Segment` (those that are None are left out), the JSON file
    of the same name its numbers, the reason and the temperature. `folder` is made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"window-{segment.walker}-seed-{segment.seed}.json"
    arrays = {name: getattr(segment, name) for name in _ARRAYS if getattr(segment, name) is not None}
    with replacing(path.with_suffix(".npz")) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    content = {name: int(getattr(segment, name)) for name in _NUMBERS}
    write_json(path, content | {"reason": reason, "temperature_k": temperature_k})
    return path


def load_failed(path: Path) -> tuple[Segment, str]:
    """Return the segment and the reason that `save_failed` wrote to `path`; nothing in the files is executed.

    Raises
    ------
    InputError
        when the files are damaged, or one of them is missing.
    """
    try:
        content = read_json(path)
        content |= dict.fromkeys(_ARRAYS) | read_arrays(path.with_suffix(".npz"))
        return Segment(**{name: content[name] for name in (*_ARRAYS, *_NUMBERS)}), content["reason"]
    except DAMAGE as error:
        raise InputError(f"{path} is no walker that was set aside: {one_line(error)}") from None
