"""Features of positions, which learned CVs are functions of: in torch, differentiable, and as plain values in JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch

from .units import InputError

__all__ = ["Coordinates", "Features", "PairDistances"]


class Features(ABC):
    """Numbers made of positions, which a learned CV is a function of."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def atoms(self) -> tuple[int, ...]:
        """The atoms that the features need, sorted."""

    @abstractmethod
    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Return features (n, d) of positions (n, n_atoms, 3) in nm; differentiable."""

    @property
    @abstractmethod
    def n_features(self) -> int:
        """d, the number of features."""

    # The same in numpy for one configuration, where each microsecond counts: x → rows = matrix x → features.

    @abstractmethod
    def matrix(self) -> np.ndarray:
        """Return the matrix (n_rows, len(atoms)) that takes the positions of `atoms` to vectors."""

    @abstractmethod
    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the features (d,) of such vectors (n_rows, 3)."""

    @abstractmethod
    def pull_back(self, rows: np.ndarray, features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Return a gradient by features (d,) as one by rows (n_rows, 3)."""

    def to_dict(self) -> dict[str, Any]:
        """Return the features as plain values, for JSON."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Features:
        """Return the features that `to_dict` described."""
        options = {name: value for name, value in data.items() if name != "kind"}
        return FEATURES[data["kind"]](**options)


@dataclass(frozen=True)
class PairDistances(Features):
    """Distances of pairs of atoms, nm: the same wherever the molecule is and however it is turned or mirrored."""

    pairs: tuple[tuple[int, int], ...]
    kind: ClassVar[str] = "pair_distances"

    def __post_init__(self) -> None:
        pairs = tuple((int(i), int(j)) for i, j in self.pairs)
        if not pairs or any(i == j or min(i, j) < 0 for i, j in pairs) or len({*map(frozenset, pairs)}) < len(pairs):
            raise InputError("pair distances need one pair or more of different atoms, each pair once, counted from 0")
        object.__setattr__(self, "pairs", pairs)

    @property
    def atoms(self) -> tuple[int, ...]:
        return tuple(sorted(set(chain.from_iterable(self.pairs))))

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        first, second = torch.tensor(self.pairs).T
        return torch.linalg.vector_norm(positions[:, first] - positions[:, second], dim=-1)

    def matrix(self) -> np.ndarray:
        place = {atom: k for k, atom in enumerate(self.atoms)}
        result = np.zeros((len(self.pairs), len(place)))
        for row, (i, j) in zip(result, self.pairs, strict=True):
            row[place[i]], row[place[j]] = 1.0, -1.0
        return result

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.sqrt(np.einsum("ij,ij->i", rows, rows))

    def pull_back(self, rows: np.ndarray, features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return (gradient / features)[:, None] * rows

    @property
    def n_features(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class Coordinates(Features):
    """Cartesian coordinates, nm, of particles in an external potential: per atom, the axes asked for (0, 1, 2).

    They notice where a molecule is and how it is turned, which no CV of a `MolecularSystem` may: it is centred before
    its CVs are evaluated, and a CV on these features is refused there.
    """

    atom_indices: tuple[int, ...]
    axes: tuple[int, ...] = (0, 1, 2)
    kind: ClassVar[str] = "coordinates"

    def __post_init__(self) -> None:
        atoms, axes = tuple(map(int, self.atom_indices)), tuple(map(int, self.axes))
        if not atoms or min(atoms) < 0 or len(set(atoms)) < len(atoms):
            raise InputError(f"coordinates need one atom or more, each once, counted from 0, got {list(atoms)}")
        if not axes or not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
            raise InputError(f"the axes of coordinates are any of 0, 1, 2, each once, got {list(axes)}")
        object.__setattr__(self, "atom_indices", atoms)
        object.__setattr__(self, "axes", axes)

    @property
    def atoms(self) -> tuple[int, ...]:
        return tuple(sorted(self.atom_indices))

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        return positions[:, list(self.atom_indices)][:, :, list(self.axes)].flatten(1)

    def matrix(self) -> np.ndarray:
        return np.eye(len(self.atoms))[[self.atoms.index(atom) for atom in self.atom_indices]]

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, self.axes].ravel()

    def pull_back(self, rows: np.ndarray, features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        result = np.zeros_like(rows)
        result[:, self.axes] = gradient.reshape(len(rows), -1)
        return result

    @property
    def n_features(self) -> int:
        return len(self.atom_indices) * len(self.axes)


FEATURES: dict[str, type[Any]] = {kind.kind: kind for kind in (PairDistances, Coordinates)}
