"""Internal coordinates of any bonded molecule: fit, encode, decode, and the volume element.

The coordinates are bond lengths, bond angles and torsions of a Z-matrix that follows the bond graph. What makes them
easy for a score model (each measured):

* the second and later children of an atom are placed by the torsion to their first sibling, which is unimodal;
* a torsion that is a CV enters as its offset from the label;
* constrained bonds are constants;
* everything unimodal is centred on a smooth function of the label and whitened together;
* true rotors stay on the circle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .labels import LabelSpace
from .whitening import fit_whitening
from .zmatrix import ZMatrix, body_frame, internal_coordinates, log_volume_element, out_of_reach, place_atoms

__all__ = ["Representation", "fit_representation"]

ROTOR_SCALE = 0.25
"""Radians of a rotor per unit of its coordinate, so that one noise level suits rotors and whitened coordinates."""
UNIMODAL_SPREAD = 0.5
"""Torsions whose circular standard deviation (rad) is below this are unwrapped about their mean."""


def _wrap(angle: torch.Tensor) -> torch.Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


@dataclass(frozen=True)
class Representation:
    """The map between configurations x (nm) and coordinates z, given the label.

    z holds `n_linear` whitened coordinates, then `n_rotors` rotor angles in units of `ROTOR_SCALE` rad.

    Attributes
    ----------
    rotors, unimodal, cv : int64; rows of the torsion array (placement − 3) of each class
    cv_of : int64; the CV that each `cv` row is
    torsion_means : float64, shape (n_torsions,), rad; what unimodal torsions are unwrapped about
    coefficients : float64, shape (n_features, n_linear); label-dependent mean of the raw linear coordinates
    mixing, unmixing : float64, shape (n_linear, n_linear); raw = mean + z @ mixing, z = (raw − mean) @ unmixing
    """

    z_matrix: ZMatrix
    label_space: LabelSpace
    n_atoms: int
    constraints: np.ndarray
    inverse_masses: np.ndarray
    rotors: np.ndarray
    unimodal: np.ndarray
    cv: np.ndarray
    cv_of: np.ndarray
    torsion_means: np.ndarray
    coefficients: np.ndarray
    mixing: np.ndarray
    unmixing: np.ndarray

    @property
    def n_linear(self) -> int:
        """Number of whitened coordinates."""
        return len(self.mixing)

    @property
    def n_rotors(self) -> int:
        """Number of rotors."""
        return len(self.rotors)

    def encode(self, positions: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z, shape (n, n_linear + n_rotors), and log |dx/dz|, shape (n,).

        positions : float64, shape (n, n_atoms, 3), nm; labels : float64, shape (n, n_cvs)
        """
        bonds, angles, torsions = internal_coordinates(positions, self.z_matrix)
        raw = self._raw_linear(bonds, angles, torsions, labels)
        linear = (raw - self._raw_mean(labels)) / self._spread(labels) @ torch.as_tensor(self.unmixing)
        rotors = torsions[:, torch.as_tensor(self.rotors)] / ROTOR_SCALE
        return torch.cat([linear, rotors], dim=1), self._log_volume(bonds, angles, positions, labels)

    def decode(self, z: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return positions (n, n_atoms, 3) nm, log |dx/dz| (n,) and valid (n,) bool.

        A row is invalid where the map is not one-to-one: a bond length or angle out of range, or a torsion more than
        half a turn from its mean. Such a row has no density in configuration space and is never a configuration.
        """
        linear, rotors = z[:, : self.n_linear], z[:, self.n_linear :]
        raw = self._raw_mean(labels) + linear @ torch.as_tensor(self.mixing) * self._spread(labels)
        constant = self.z_matrix.constant_bonds[1:]
        free = np.flatnonzero(np.isnan(constant))
        n_bonds, n_angles = len(free), len(constant) - 1
        bonds = torch.as_tensor(np.nan_to_num(constant)).expand(len(z), -1).clone()
        bonds[:, torch.as_tensor(free)] = raw[:, :n_bonds]
        angles = raw[:, n_bonds : n_bonds + n_angles]
        offsets = raw[:, n_bonds + n_angles :]
        unimodal, cv = offsets[:, : len(self.unimodal)], offsets[:, len(self.unimodal) :]
        inside = (angles > 0) & ((angles < math.pi) | torch.as_tensor(self.z_matrix.closing[2:]))
        valid = (raw[:, :n_bonds] > 0).all(1) & inside.all(1)
        valid &= (offsets.abs() < math.pi).all(1)
        torsions = torch.zeros(len(z), len(self.torsion_means), dtype=z.dtype)
        torsions[:, torch.as_tensor(self.rotors)] = rotors * ROTOR_SCALE
        torsions[:, torch.as_tensor(self.unimodal)] = unimodal + torch.as_tensor(self.torsion_means[self.unimodal])
        torsions[:, torch.as_tensor(self.cv)] = cv + labels[:, torch.as_tensor(self.cv_of)]
        positions = place_atoms(bonds, angles, torsions, self.z_matrix, self.n_atoms)
        valid &= ~out_of_reach(bonds, angles, positions, self.z_matrix)
        safe_bonds = torch.where(bonds > 0, bonds, torch.ones_like(bonds))
        safe_angles = torch.where(inside, angles, torch.ones_like(angles))
        return positions, self._log_volume(safe_bonds, safe_angles, positions, labels), valid

    def log_constraint_factor(self, positions: torch.Tensor) -> torch.Tensor:
        """Return ½ log det Z (Fixman 1974), shape (n,), up to a constant: constraints make it exp(−βU) |Z|^½."""
        if len(self.constraints) == 0:
            return torch.zeros(len(positions), dtype=positions.dtype)
        i, j = torch.as_tensor(self.constraints.T)
        masses = torch.as_tensor(self.inverse_masses)
        unit = positions[:, i] - positions[:, j]
        unit = unit / unit.norm(dim=-1, keepdim=True)
        # Z_kl = sum over shared atoms of the product of signs / mass, times the cosine between the bonds
        shared = torch.zeros(len(i), len(i), dtype=positions.dtype)
        for a, sign_a in ((i, 1.0), (j, -1.0)):
            for b, sign_b in ((i, 1.0), (j, -1.0)):
                shared += (a[:, None] == b[None, :]) * sign_a * sign_b * masses[a][:, None]
        return 0.5 * torch.linalg.slogdet(shared * (unit @ unit.transpose(1, 2)))[1]

    def force_targets(
        self,
        positions: torch.Tensor,
        forces: torch.Tensor,
        labels: torch.Tensor,
        beta: float | torch.Tensor,
        force_constants: np.ndarray | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z and ∇_z log π_c, each of shape (n, n_z): equation 3's g, by the chain rule through `decode`.

        The gradient is of −βU − β bias + ½ log|Z| + log|dx/dz|.

        Parameters
        ----------
        forces : float64, shape (n, n_atoms, 3), kJ/mol/nm; of U and of the umbrellas on CVs that are no coordinate
        beta : mol/kJ, one or shape (n,)
        force_constants : (len(cv),) or (n, len(cv)), kJ/mol/rad²; of the umbrellas on torsions that are coordinates
        """
        z, _ = self.encode(positions, labels)
        z = z.detach().requires_grad_(True)
        x, log_volume, _ = self.decode(z, labels)
        rotated = forces @ body_frame(positions, self.z_matrix)
        offsets = z[:, : self.n_linear] @ torch.as_tensor(self.mixing) * self._spread(labels)
        offsets = (self._raw_mean(labels) + offsets)[:, self.n_linear - len(self.cv) :]
        umbrella = 0.5 * (torch.as_tensor(force_constants) * offsets**2).sum(dim=1)
        log_density = beta * ((rotated * x).sum(dim=(1, 2)) - umbrella) + log_volume + self.log_constraint_factor(x)
        return z.detach(), torch.autograd.grad(log_density.sum(), z)[0]

    def _raw_mean(self, labels: torch.Tensor) -> torch.Tensor:
        return self.label_space.features(labels) @ torch.as_tensor(self.coefficients)

    def _spread(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the widths of the raw linear coordinates relative to the target temperature's, (n, n_linear).

        An umbrella's is the same at all temperatures (its force constant rises with T), a harmonic coordinate's √T.
        """
        spread = self.label_space.spread(labels).expand(-1, self.n_linear).clone()
        spread[:, self.n_linear - len(self.cv) :] = 1.0
        return spread

    def _raw_linear(
        self, bonds: torch.Tensor, angles: torch.Tensor, torsions: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        free = torch.as_tensor(np.flatnonzero(np.isnan(self.z_matrix.constant_bonds[1:])))
        unimodal = _wrap(
            torsions[:, torch.as_tensor(self.unimodal)] - torch.as_tensor(self.torsion_means[self.unimodal])
        )
        cv = _wrap(torsions[:, torch.as_tensor(self.cv)] - labels[:, torch.as_tensor(self.cv_of)])
        return torch.cat([bonds[:, free], angles, unimodal, cv], dim=1)

    def _log_volume(
        self, bonds: torch.Tensor, angles: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the volume element of the placed atoms times that of the whitening; the rotation is left out."""
        constant = float(np.linalg.slogdet(self.mixing)[1]) + self.n_rotors * math.log(ROTOR_SCALE)
        widths = torch.log(self._spread(labels)).sum(1)
        return log_volume_element(bonds, angles, positions, self.z_matrix) + widths + constant

    def has_coordinates_of(self, other: Any) -> bool:
        """Return whether z means the same in both up to the fit, so that a network of one can go on with the other."""
        names = ("rotors", "unimodal", "cv", "cv_of")
        return (
            isinstance(other, Representation)
            and np.array_equal(self.z_matrix.references, other.z_matrix.references)
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays, for safetensors."""
        return {
            "order": self.z_matrix.order,
            "references": self.z_matrix.references,
            "constant_bonds": self.z_matrix.constant_bonds,
            "cv_torsions": self.z_matrix.cv_torsions,
            "closing": self.z_matrix.closing,
            **{name: np.asarray(getattr(self, name)) for name in _ARRAYS},
        }

    @staticmethod
    def from_arrays(arrays: dict[str, np.ndarray], label_space: LabelSpace, n_atoms: int) -> Representation:
        """Rebuild from `to_arrays`."""
        names = ("order", "references", "constant_bonds", "cv_torsions", "closing")
        z_matrix = ZMatrix(*(arrays[name] for name in names))
        fields: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        return Representation(z_matrix=z_matrix, label_space=label_space, n_atoms=n_atoms, **fields)


_ARRAYS = (
    "constraints",
    "inverse_masses",
    "rotors",
    "unimodal",
    "cv",
    "cv_of",
    "torsion_means",
    "coefficients",
    "mixing",
    "unmixing",
)


def fit_representation(
    positions: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    z_matrix: ZMatrix,
    label_space: LabelSpace,
    constraints: Sequence[tuple[int, int, float]],
    masses: np.ndarray,
) -> Representation:
    """Fit the data-dependent parts: classes of torsions, label-dependent means, whitening.

    Parameters
    ----------
    positions : float64, shape (n, n_atoms, 3), nm; labels : shape (n, n_cvs); weights : shape (n,), not negative
    """
    x, c = torch.as_tensor(positions), torch.as_tensor(labels)
    w = torch.as_tensor(weights / weights.sum())
    bonds, angles, torsions = internal_coordinates(x, z_matrix)
    cosine, sine = (w[:, None] * torch.cos(torsions)).sum(0), (w[:, None] * torch.sin(torsions)).sum(0)
    means = torch.atan2(sine, cosine)
    spread = torch.sqrt(-2 * torch.log(torch.sqrt(cosine**2 + sine**2).clamp(1e-12, 1.0)))
    is_cv = torch.as_tensor(z_matrix.cv_torsions[3:]) >= 0
    rows = np.arange(len(means))
    unimodal = rows[(~is_cv & (spread < UNIMODAL_SPREAD)).numpy()]
    rotors = rows[(~is_cv & (spread >= UNIMODAL_SPREAD)).numpy()]
    cv = rows[is_cv.numpy()]
    n_linear = int(np.isnan(z_matrix.constant_bonds[1:]).sum()) + angles.shape[1] + len(unimodal) + len(cv)
    inverse_masses = np.zeros(len(masses))
    inverse_masses[masses > 0] = 1 / masses[masses > 0]
    plain = Representation(
        z_matrix=z_matrix,
        label_space=label_space,
        n_atoms=positions.shape[1],
        constraints=np.array([[i, j] for i, j, _ in constraints], dtype=np.int64).reshape(-1, 2),
        inverse_masses=inverse_masses,
        rotors=rotors,
        unimodal=unimodal,
        cv=cv,
        cv_of=z_matrix.cv_torsions[3:][cv],
        torsion_means=means.numpy(),
        coefficients=np.zeros((label_space.features(c[:1]).shape[1], n_linear)),
        mixing=np.eye(n_linear),
        unmixing=np.eye(n_linear),
    )
    raw = plain._raw_linear(bonds, angles, torsions, c)
    coefficients, mixing, unmixing = fit_whitening(raw, label_space.features(c), plain._spread(c), w)
    fitted = dict(vars(plain), coefficients=coefficients.numpy(), mixing=mixing.numpy(), unmixing=unmixing.numpy())
    return Representation(**fitted)
