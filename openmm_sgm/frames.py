"""`Frames`: configurations with everything that is known of them, the one object that flows between modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from .files import read_arrays, replacing

__all__ = ["BURN_IN", "GENERATED", "INJECTED", "MD", "SEED", "Frames", "Selection", "rows_by_window"]

BURN_IN = 0
"""Provenance: molecular dynamics before the window is known to be in equilibrium; for training, not for estimators."""
MD = 1
"""Provenance: molecular dynamics of a window's equilibrium chain."""
INJECTED = 2
"""Provenance: the state of a window's equilibrium chain after a Metropolis test of a generated configuration."""
GENERATED = 3
"""Provenance: an independent draw from the generator, weighted by its exact importance weight."""
SEED = 4
"""Provenance: a generated configuration that a window starts from; no sample of anything yet."""


@dataclass(frozen=True)
class Frames:
    """Configurations, each belonging to one umbrella window (its label).

    Attributes
    ----------
    positions : float64, shape (n, n_atoms, 3), nm
    forces : float64, shape (n, n_atoms, 3), kJ/mol/nm; minus the gradient of the unbiased potential
    energies : float64, shape (n,), kJ/mol; the unbiased potential energy
    cvs : float64, shape (n, n_cvs); CV values in the CVs' own units
    labels : float64, shape (n, n_cvs); the window centre that the configuration belongs to
    windows : int64, shape (n,); index of that window
    log_weights : float64, shape (n,); log of the weight towards the window's umbrella ensemble:
        0 for a window's chain, log[exp(-U_c/kT) |Z|^1/2 / q(x|c)] for generated configurations (not normalised)
    source : int8, shape (n,); `BURN_IN`, `MD`, `INJECTED`, `GENERATED` or `SEED`

    Raises
    ------
    ValueError
        when an array has another shape than stated, or a value that is not finite (log-weights may be -inf).
    """

    positions: np.ndarray
    forces: np.ndarray
    energies: np.ndarray
    cvs: np.ndarray
    labels: np.ndarray
    windows: np.ndarray
    log_weights: np.ndarray
    source: np.ndarray

    def __post_init__(self) -> None:
        for name, wanted in (("positions", "(n, n_atoms, 3)"), ("cvs", "(n, n_cvs)")):
            if np.ndim(getattr(self, name)) != wanted.count(",") + 1:
                raise ValueError(f"Frames.{name} must have shape {wanted}, got {np.shape(getattr(self, name))}")
        n, atoms = np.shape(self.positions)[:2]
        dimension = np.shape(self.cvs)[-1]
        expected: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "positions": ((n, atoms, 3), np.float64),
            "forces": ((n, atoms, 3), np.float64),
            "energies": ((n,), np.float64),
            "cvs": ((n, dimension), np.float64),
            "labels": ((n, dimension), np.float64),
            "windows": ((n,), np.int64),
            "log_weights": ((n,), np.float64),
            "source": ((n,), np.int8),
        }
        for name, (shape, dtype) in expected.items():
            given = np.asarray(getattr(self, name))
            if given.dtype.kind not in "biuf":
                raise ValueError(f"Frames.{name} must hold real numbers, got {given.dtype}")
            if given.shape != shape:
                raise ValueError(f"Frames.{name} must have shape {shape}, got {given.shape}")
            bad = np.isnan(given) | np.isposinf(given) if name == "log_weights" else ~np.isfinite(given)
            if bad.any():
                raise ValueError(f"Frames.{name} holds {int(bad.sum())} values that are not finite")
            with np.errstate(invalid="ignore"):
                array = np.ascontiguousarray(given, dtype=dtype)
            if np.issubdtype(dtype, np.integer) and not np.array_equal(array, given):
                raise ValueError(f"Frames.{name} must hold whole numbers that fit {np.dtype(dtype)}")
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.energies)

    def __getitem__(self, index: np.ndarray | slice) -> Frames:
        """Return the selected frames; `index` is a slice, a mask or an array of indices."""
        return Frames(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @staticmethod
    def empty(n_atoms: int, n_cvs: int) -> Frames:
        """Return no frames of a system with `n_atoms` atoms and `n_cvs` CVs."""
        return Frames(
            positions=np.zeros((0, n_atoms, 3)),
            forces=np.zeros((0, n_atoms, 3)),
            energies=np.zeros(0),
            cvs=np.zeros((0, n_cvs)),
            labels=np.zeros((0, n_cvs)),
            windows=np.zeros(0, dtype=np.int64),
            log_weights=np.zeros(0),
            source=np.zeros(0, dtype=np.int8),
        )

    @staticmethod
    def concatenate(parts: list[Frames]) -> Frames:
        """Return the frames of all `parts` in order; at least one part is needed."""
        return Frames.gather(parts, [slice(None)] * len(parts))

    @staticmethod
    def gather(parts: list[Frames], rows: Sequence[np.ndarray | slice]) -> Frames:
        """Return the given rows of each part in order, one array at a time: the parts are not copied as a whole."""
        return Frames(
            **{
                f.name: np.concatenate([getattr(part, f.name)[own] for part, own in zip(parts, rows, strict=True)])
                for f in fields(Frames)
            }
        )

    def save(self, path: Path) -> None:
        """Write the frames to `path` (.npz), atomically: a reader sees the old file or the new one."""
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def load(path: Path) -> Frames:
        """Read frames written by `save`; nothing in the file is executed."""
        arrays = read_arrays(path)
        return Frames(**{field.name: arrays[field.name] for field in fields(Frames)})


@dataclass(frozen=True)
class Selection:
    """Frames of several parts taken as one, none of them copied before `take`: positions and forces are large.

    Attributes
    ----------
    parts : one or more
    rows : int64, shape (n,); which frames, counted through all parts
    """

    parts: list[Frames]
    rows: np.ndarray

    @staticmethod
    def of(parts: list[Frames], rows: Sequence[np.ndarray] | None = None) -> Selection:
        """Select the given rows (masks or indices) of each part, or all."""
        starts = np.cumsum([0, *(len(part) for part in parts)])[:-1]
        if rows is None:
            return Selection(parts, np.arange(sum(len(part) for part in parts)))
        own = [start + np.arange(len(part))[r] for start, part, r in zip(starts, parts, rows, strict=True)]
        return Selection(parts, np.concatenate(own))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: np.ndarray | slice) -> Selection:
        return Selection(self.parts, self.rows[index])

    def column(self, name: str) -> np.ndarray:
        """Return one attribute of the selected frames."""
        local, back = self._by_part(self.rows)
        values = np.concatenate([getattr(part, name)[own] for part, own in zip(self.parts, local, strict=True)])
        return np.asarray(values[back])

    def take(self, index: np.ndarray | slice = slice(None)) -> Frames:
        """Return the selected frames, or some of them, in their order."""
        local, back = self._by_part(self.rows[index])
        frames = Frames.gather(self.parts, local)
        return frames if isinstance(back, slice) else frames[back]

    def _by_part(self, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray | slice]:
        """Return each part's own rows, and how to bring what they give back into the order of `rows`."""
        ends = np.cumsum([len(part) for part in self.parts])
        part_of = np.searchsorted(ends, rows, side="right")
        order = np.argsort(part_of, kind="stable")
        pieces = np.split(rows[order], np.searchsorted(part_of[order], np.arange(1, len(self.parts))))
        local = [piece - (end - len(part)) for piece, end, part in zip(pieces, ends, self.parts, strict=True)]
        if (np.diff(part_of) >= 0).all():
            return local, slice(None)
        back = np.empty(len(rows), dtype=np.int64)
        back[order] = np.arange(len(rows))
        return local, back


def rows_by_window(windows: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each window's samples, in their order."""
    order = np.argsort(windows, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(windows[order])) + 1) if len(windows) else []
