"""Cartesian coordinates of particles tied to a place, whitened: fit, encode, decode, and the volume element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .labels import LabelSpace
from .whitening import fit_whitening

__all__ = ["CartesianRepresentation", "fit_cartesian"]

_ARRAYS = ("coefficients", "mixing", "unmixing")


@dataclass(frozen=True)
class CartesianRepresentation:
    """The map between configurations x (nm) and coordinates z of particles in an external potential, given the label.

    All 3 n_atoms coordinates, centred on a smooth function of the label and whitened together. It has the methods of
    `Representation`, no rotors, and no coordinate that is a CV.

    Attributes
    ----------
    coefficients : float64, shape (n_features, 3 n_atoms); label-dependent mean
    mixing, unmixing : float64, shape (3 n_atoms, 3 n_atoms); x = mean + z @ mixing, z = (x − mean) @ unmixing
    """

    label_space: LabelSpace
    n_atoms: int
    coefficients: np.ndarray
    mixing: np.ndarray
    unmixing: np.ndarray
    n_rotors = 0

    @property
    def n_linear(self) -> int:
        """Number of coordinates."""
        return len(self.mixing)

    @property
    def cv_of(self) -> np.ndarray:
        """CVs that are coordinates: none."""
        return np.zeros(0, dtype=np.int64)

    def encode(self, positions: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z, shape (n, 3 n_atoms), and log |dx/dz|, shape (n,), of positions (n, n_atoms, 3) nm."""
        offsets = (positions.reshape(len(positions), -1) - self._mean(labels)) / self.label_space.spread(labels)
        return offsets @ torch.as_tensor(self.unmixing), self._log_volume(labels)

    def decode(self, z: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return positions (n, n_atoms, 3) nm, log |dx/dz| (n,) and valid (n,): every row is a configuration."""
        flat = self._mean(labels) + z @ torch.as_tensor(self.mixing) * self.label_space.spread(labels)
        return flat.reshape(len(z), self.n_atoms, 3), self._log_volume(labels), torch.ones(len(z), dtype=torch.bool)

    def log_constraint_factor(self, positions: torch.Tensor) -> torch.Tensor:
        """Return zeros, shape (n,): tied particles have no constraints."""
        return torch.zeros(len(positions), dtype=positions.dtype)

    def force_targets(
        self,
        positions: torch.Tensor,
        forces: torch.Tensor,
        labels: torch.Tensor,
        beta: float | torch.Tensor,
        force_constants: np.ndarray | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z and ∇_z log π_c, each of shape (n, 3 n_atoms); `forces` hold the umbrellas'."""
        z, _ = self.encode(positions, labels)
        flat = forces.reshape(len(forces), -1) * self.label_space.spread(labels)
        return z, torch.as_tensor(beta).reshape(-1, 1) * flat @ torch.as_tensor(self.mixing).T

    def has_coordinates_of(self, other: Any) -> bool:
        """Return whether z means the same in both up to the fit, so that a network of one can go on with the other."""
        return isinstance(other, CartesianRepresentation) and other.n_atoms == self.n_atoms

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays, for safetensors."""
        return {name: np.asarray(getattr(self, name)) for name in _ARRAYS}

    @staticmethod
    def from_arrays(arrays: dict[str, np.ndarray], label_space: LabelSpace, n_atoms: int) -> CartesianRepresentation:
        """Rebuild from `to_arrays`."""
        return CartesianRepresentation(label_space, n_atoms, *(arrays[name] for name in _ARRAYS))

    def _mean(self, labels: torch.Tensor) -> torch.Tensor:
        return self.label_space.features(labels) @ torch.as_tensor(self.coefficients)

    def _log_volume(self, labels: torch.Tensor) -> torch.Tensor:
        widths = self.n_linear * torch.log(self.label_space.spread(labels))[:, 0]
        return widths + float(np.linalg.slogdet(self.mixing)[1])


def fit_cartesian(positions: np.ndarray, labels: np.ndarray, label_space: LabelSpace) -> CartesianRepresentation:
    """Fit the label-dependent mean and the whitening.

    Parameters
    ----------
    positions : float64, shape (n, n_atoms, 3), nm; labels : shape (n, n_labels)
    """
    n, n_atoms, _ = positions.shape
    c, flat = torch.as_tensor(labels), torch.as_tensor(positions).reshape(n, -1)
    spread = label_space.spread(c).expand(-1, flat.shape[1])
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    fitted = fit_whitening(flat, label_space.features(c), spread, weights)
    return CartesianRepresentation(label_space, n_atoms, *(part.numpy() for part in fitted))
