"""Internal coordinates of any bonded molecule: fit, encode, decode, and the volume element.

The coordinates are bond lengths, bond angles and torsions of a Z-matrix that follows the bond graph. What makes them
easy for a score model (each measured; see DESIGN):

* the second and later children of an atom are placed by the torsion to their first sibling, which is unimodal;
* a torsion that is a CV enters as its offset from the label;
* constrained bonds are constants;
* everything unimodal is centred on a smooth function of the label and whitened together;
* true rotors stay on the circle.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .units import InputError

__all__ = ["LabelSpace", "Representation", "ZMatrix", "build_z_matrix", "fit_representation"]

ROTOR_SCALE = 0.25
"""Radians of a rotor per unit of its coordinate, so that one noise level suits rotors and whitened coordinates."""
UNIMODAL_SPREAD = 0.5
"""Torsions whose circular standard deviation (rad) is below this are unwrapped about their mean."""
LABEL_ORDER = 3
"""Total order of the Fourier and Chebyshev products in which label-dependent means are expanded."""


@dataclass(frozen=True)
class LabelSpace:
    """The space of labels: smooth features of a point in CV space.

    Attributes
    ----------
    periods : per CV, its period or None
    minimum, maximum : per CV, the bounds that non-periodic CVs are scaled with
    """

    periods: tuple[float | None, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]

    def difference(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return a − b, shape (n, d), wrapped into [−period/2, period/2) for periodic CVs."""
        delta = a - b
        columns = [
            delta[:, k] if period is None else torch.remainder(delta[:, k] + period / 2, period) - period / 2
            for k, period in enumerate(self.periods)
        ]
        return torch.stack(columns, dim=1)

    def features(self, labels: torch.Tensor, order: int = LABEL_ORDER) -> torch.Tensor:
        """Return products of per-CV bases up to total `order`, the constant first; labels (n, d) -> (n, n_features)."""
        bases: list[list[tuple[int, torch.Tensor]]] = []
        for k, period in enumerate(self.periods):
            one = torch.ones_like(labels[:, k])
            terms = [(0, one)]
            if period is not None:
                angle = labels[:, k] * (2 * math.pi / period)
                for m in range(1, order + 1):
                    terms += [(m, torch.cos(m * angle)), (m, torch.sin(m * angle))]
            else:
                u = 2 * (labels[:, k] - self.minimum[k]) / (self.maximum[k] - self.minimum[k]) - 1
                chebyshev = [one, u]
                for _ in range(2, order + 1):
                    chebyshev.append(2 * u * chebyshev[-1] - chebyshev[-2])
                terms += [(m, chebyshev[m]) for m in range(1, order + 1)]
            bases.append(terms)
        columns = []
        for combination in itertools.product(*bases):
            if sum(degree for degree, _ in combination) <= order:
                columns.append(math.prod((term for _, term in combination[1:]), start=combination[0][1]))
        return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class ZMatrix:
    """How each atom is placed: `order[i]` by a bond to, an angle with and a torsion over `references[i]`.

    Attributes
    ----------
    order : int64, shape (n,); atoms in the order of placement (virtual sites are left out)
    references : int64, shape (n, 3); for atom i its parent, grandparent and third reference, −1 where there is none
    constant_bonds : float64, shape (n,), nm; the constrained length, NaN for a bond that is a coordinate
    cv_torsions : int64, shape (n,); index of the CV that the torsion of this placement is, −1 for none
    """

    order: np.ndarray
    references: np.ndarray
    constant_bonds: np.ndarray
    cv_torsions: np.ndarray


def build_z_matrix(
    n_atoms: int,
    bonds: np.ndarray,
    masses: np.ndarray,
    constraints: Sequence[tuple[int, int, float]],
    torsion_cvs: Sequence[tuple[int, ...] | None],
) -> ZMatrix:
    """Build a Z-matrix over the bond graph in which as many CV torsions as possible are coordinates.

    Parameters
    ----------
    bonds : shape (m, 2), bonded pairs; masses : shape (n_atoms,), amu (virtual sites have none)
    constraints : (i, j, length in nm), each on a bonded pair
    torsion_cvs : per CV the four atoms of a torsion, or None for another kind

    Raises
    ------
    InputError
        if the massive atoms are not one bonded piece of three atoms or more, or a constraint closes a ring.
    """
    real = [a for a in range(n_atoms) if masses[a] > 0]
    neighbours: dict[int, list[int]] = {a: [] for a in real}
    for i, j in bonds:
        if masses[i] > 0 and masses[j] > 0:
            neighbours[int(i)].append(int(j))
            neighbours[int(j)].append(int(i))
    if len(real) < 3:
        raise InputError("the molecule needs at least three atoms with mass")
    heavy_terminal = [a for a in real if sum(masses[b] > 1.5 for b in neighbours[a]) <= 1 and masses[a] > 1.5]
    roots = heavy_terminal or [a for a in real if masses[a] > 1.5] or real
    candidates = [_place_from(root, neighbours, masses, torsion_cvs) for root in roots]
    if len(candidates[0][0]) < len(real):
        raise InputError("the molecule is in several pieces; one bonded molecule is supported")
    order, references, cv_torsions = max(candidates, key=lambda c: sum(k >= 0 for k in c[2]))
    lengths = {frozenset((int(i), int(j))): float(length) for i, j, length in constraints}
    constant = np.full(len(order), np.nan)
    for row in range(1, len(order)):
        constant[row] = lengths.pop(frozenset((order[row], references[row][0])), np.nan)
    if lengths:
        raise InputError("constraints that close a ring are not supported; use constraints = 'HBonds'")
    return ZMatrix(np.array(order), np.array(references), constant, np.array(cv_torsions))


def _place_from(
    root: int,
    neighbours: dict[int, list[int]],
    masses: np.ndarray,
    torsion_cvs: Sequence[tuple[int, ...] | None],
) -> tuple[list[int], list[tuple[int, int, int]], list[int]]:
    """Place atoms breadth first from `root`: (order, references, CV index per torsion)."""
    wanted = {}
    for k, atoms in enumerate(torsion_cvs):
        if atoms is not None:
            wanted[tuple(atoms)] = k
            wanted[tuple(reversed(atoms))] = k
    in_cv = {atom for atoms in wanted for atom in atoms}

    def priority(atom: int) -> tuple[bool, bool, int]:
        return (atom not in in_cv, masses[atom] < 1.5, atom)

    order = [root]
    parent = {root: -1}
    first_child: dict[int, int] = {}
    sibling: dict[int, int] = {}  # the first child that others of the same centre are placed against
    references = [(-1, -1, -1)]
    cv_index = [-1]
    queue: deque[int] = deque()

    def place(atom: int, centre: int) -> None:
        """Choose references of `atom`, bonded to the already placed `centre`."""
        b = parent[centre] if parent[centre] >= 0 else first_child.get(centre, -1)
        a, cv = -1, -1
        if b >= 0 and centre in sibling:
            a = sibling[centre]
        elif b >= 0:
            options = [n for n in neighbours[b] if n != centre and n in parent]
            matched = [n for n in options if (atom, centre, b, n) in wanted]
            a = (matched or sorted(options, key=lambda n: (n != parent[b], priority(n))) or [-1])[0]
            cv = wanted.get((atom, centre, b, a), -1)
        parent[atom] = centre
        first_child.setdefault(centre, atom)
        if b >= 0:
            sibling.setdefault(centre, atom)
        order.append(atom)
        references.append((centre, b, a))
        cv_index.append(cv if cv not in cv_index else -1)
        queue.append(atom)

    children = sorted(neighbours[root], key=priority)
    place(children[0], root)
    queue.popleft()
    # The third atom hangs on the second where it can, so that the root's other children get a torsion to it.
    for atom in sorted(neighbours[children[0]], key=priority):
        if atom not in parent:
            place(atom, children[0])
            break
    queue.clear()
    queue.extend([root, *order[1:]])
    while queue:
        centre = queue.popleft()
        for atom in sorted(neighbours[centre], key=priority):
            if atom not in parent:
                place(atom, centre)
    return order, references, cv_index


def _internal(positions: torch.Tensor, z_matrix: ZMatrix) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return bonds (n, m−1), angles (n, m−2) and torsions (n, m−3) of placed atoms; positions (n, atoms, 3) nm."""
    order, refs = torch.as_tensor(z_matrix.order), torch.as_tensor(z_matrix.references)
    r0, r1 = positions[:, order[1:]], positions[:, refs[1:, 0]]
    bonds = (r0 - r1).norm(dim=-1)
    u = (r0 - r1)[:, 1:] / bonds[:, 1:, None]
    v = positions[:, refs[2:, 1]] - positions[:, refs[2:, 0]]
    v = v / v.norm(dim=-1, keepdim=True)
    # atan2 of the half-angle form is accurate near 0 and π, where acos is not
    angles = 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
    b1 = positions[:, refs[3:, 1]] - positions[:, refs[3:, 2]]
    b2 = positions[:, refs[3:, 0]] - positions[:, refs[3:, 1]]
    b3 = positions[:, order[3:]] - positions[:, refs[3:, 0]]
    c1, c2 = torch.linalg.cross(b2, b3), torch.linalg.cross(b1, b2)
    torsions = torch.atan2((b1 * c1).sum(-1) * b2.norm(dim=-1), (c1 * c2).sum(-1))
    return bonds, angles, torsions


def _cartesian(
    bonds: torch.Tensor, angles: torch.Tensor, torsions: torch.Tensor, z_matrix: ZMatrix, n_atoms: int
) -> torch.Tensor:
    """Place the atoms (natural extension reference frame, Parsons et al. 2005); returns (n, n_atoms, 3) nm."""
    order = z_matrix.order.tolist()
    refs = z_matrix.references.tolist()
    zero = torch.zeros_like(bonds[:, 0])
    placed: dict[int, torch.Tensor] = {order[0]: torch.stack([zero, zero, zero], -1)}
    placed[order[1]] = torch.stack([bonds[:, 0], zero, zero], -1)
    x, y = bonds[:, 1] * torch.cos(angles[:, 0]), bonds[:, 1] * torch.sin(angles[:, 0])
    if refs[2][0] == order[1]:
        placed[order[2]] = torch.stack([bonds[:, 0] - x, y, zero], -1)
    else:
        placed[order[2]] = torch.stack([x, y, zero], -1)
    sin_a, cos_a = torch.sin(angles), torch.cos(angles)
    sin_t, cos_t = torch.sin(torsions), torch.cos(torsions)
    for i in range(3, len(order)):
        c, b, a = (placed[k] for k in refs[i])
        e1 = c - b
        e1 = e1 / e1.norm(dim=-1, keepdim=True)
        normal = torch.linalg.cross(b - a, e1)
        normal = normal / normal.norm(dim=-1, keepdim=True)
        e2 = torch.linalg.cross(normal, e1)
        r, st, ct = bonds[:, i - 1, None], sin_a[:, i - 2, None], cos_a[:, i - 2, None]
        placed[order[i]] = c + r * (-ct * e1 + st * (cos_t[:, i - 3, None] * e2 + sin_t[:, i - 3, None] * normal))
    sites = torch.stack([zero, zero, zero], -1)
    return torch.stack([placed.get(atom, sites) for atom in range(n_atoms)], dim=1)


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
        bonds, angles, torsions = _internal(positions, self.z_matrix)
        raw = self._raw_linear(bonds, angles, torsions, labels)
        linear = (raw - self._raw_mean(labels)) @ torch.as_tensor(self.unmixing)
        rotors = torsions[:, torch.as_tensor(self.rotors)] / ROTOR_SCALE
        return torch.cat([linear, rotors], dim=1), self._log_volume(bonds, angles)

    def decode(self, z: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return positions (n, n_atoms, 3) nm, log |dx/dz| (n,) and valid (n,) bool.

        A row is invalid where the map is not one-to-one: a bond length or angle out of range, or a torsion more than
        half a turn from its mean. Such a row has no density in configuration space and is never a configuration.
        """
        linear, rotors = z[:, : self.n_linear], z[:, self.n_linear :]
        raw = self._raw_mean(labels) + linear @ torch.as_tensor(self.mixing)
        constant = self.z_matrix.constant_bonds[1:]
        free = np.flatnonzero(np.isnan(constant))
        n_bonds, n_angles = len(free), len(constant) - 1
        bonds = torch.as_tensor(np.nan_to_num(constant)).expand(len(z), -1).clone()
        bonds[:, torch.as_tensor(free)] = raw[:, :n_bonds]
        angles = raw[:, n_bonds : n_bonds + n_angles]
        offsets = raw[:, n_bonds + n_angles :]
        unimodal, cv = offsets[:, : len(self.unimodal)], offsets[:, len(self.unimodal) :]
        valid = (raw[:, :n_bonds] > 0).all(1) & ((angles > 0) & (angles < math.pi)).all(1)
        valid &= (offsets.abs() < math.pi).all(1)
        torsions = torch.zeros(len(z), len(self.torsion_means), dtype=z.dtype)
        torsions[:, torch.as_tensor(self.rotors)] = rotors * ROTOR_SCALE
        torsions[:, torch.as_tensor(self.unimodal)] = unimodal + torch.as_tensor(self.torsion_means[self.unimodal])
        torsions[:, torch.as_tensor(self.cv)] = cv + labels[:, torch.as_tensor(self.cv_of)]
        positions = _cartesian(bonds, angles, torsions, self.z_matrix, self.n_atoms)
        safe_bonds = torch.where(bonds > 0, bonds, torch.ones_like(bonds))
        inside = (angles > 0) & (angles < math.pi)
        safe_angles = torch.where(inside, angles, torch.ones_like(angles))
        return positions, self._log_volume(safe_bonds, safe_angles), valid

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
        beta: float,
        force_constants: np.ndarray,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z and ∇_z log π_c, each of shape (n, n_z): equation 3's g, by the chain rule through `decode`.

        The gradient is of −βU − β bias + ½ log|Z| + log|dx/dz|.

        Parameters
        ----------
        forces : float64, shape (n, n_atoms, 3), kJ/mol/nm; of U and of the umbrellas on CVs that are no coordinate
        force_constants : shape (len(cv),), kJ/mol/rad²; of the umbrellas on torsions that are coordinates
        """
        z, _ = self.encode(positions, labels)
        z = z.detach().requires_grad_(True)
        x, log_volume, _ = self.decode(z, labels)
        rotated = forces @ _body_frame(positions, self.z_matrix)
        offsets = self._raw_mean(labels) + z[:, : self.n_linear] @ torch.as_tensor(self.mixing)
        offsets = offsets[:, self.n_linear - len(self.cv) :]
        umbrella = 0.5 * (torch.as_tensor(force_constants) * offsets**2).sum(dim=1)
        log_density = beta * ((rotated * x).sum(dim=(1, 2)) - umbrella) + log_volume + self.log_constraint_factor(x)
        return z.detach(), torch.autograd.grad(log_density.sum(), z)[0]

    def _raw_mean(self, labels: torch.Tensor) -> torch.Tensor:
        return self.label_space.features(labels) @ torch.as_tensor(self.coefficients)

    def _raw_linear(
        self, bonds: torch.Tensor, angles: torch.Tensor, torsions: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        free = torch.as_tensor(np.flatnonzero(np.isnan(self.z_matrix.constant_bonds[1:])))
        unimodal = _wrap(
            torsions[:, torch.as_tensor(self.unimodal)] - torch.as_tensor(self.torsion_means[self.unimodal])
        )
        cv = _wrap(torsions[:, torch.as_tensor(self.cv)] - labels[:, torch.as_tensor(self.cv_of)])
        return torch.cat([bonds[:, free], angles, unimodal, cv], dim=1)

    def _log_volume(self, bonds: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """Π b² sin θ over placed atoms times the constant of the whitening; the molecule's rotation is left out."""
        constant = float(np.linalg.slogdet(self.mixing)[1]) + self.n_rotors * math.log(ROTOR_SCALE)
        return 2 * torch.log(bonds).sum(1) + torch.log(torch.sin(angles)).sum(1) + constant

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays, for safetensors."""
        return {
            "order": self.z_matrix.order,
            "references": self.z_matrix.references,
            "constant_bonds": self.z_matrix.constant_bonds,
            "cv_torsions": self.z_matrix.cv_torsions,
            **{name: np.asarray(getattr(self, name)) for name in _ARRAYS},
        }

    @staticmethod
    def from_arrays(arrays: dict[str, np.ndarray], label_space: LabelSpace, n_atoms: int) -> Representation:
        """Rebuild from `to_arrays`."""
        z_matrix = ZMatrix(arrays["order"], arrays["references"], arrays["constant_bonds"], arrays["cv_torsions"])
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


def _body_frame(positions: torch.Tensor, z_matrix: ZMatrix) -> torch.Tensor:
    """Return rotations (n, 3, 3) with which row vectors turn from the given frame to that of `_cartesian`."""
    order = z_matrix.order
    x0, x1, x2 = (positions[:, order[k]] for k in range(3))
    e1 = x1 - x0
    e1 = e1 / e1.norm(dim=-1, keepdim=True)
    e2 = x2 - x0
    e2 = e2 - (e2 * e1).sum(-1, keepdim=True) * e1
    e2 = e2 / e2.norm(dim=-1, keepdim=True)
    return torch.stack([e1, e2, torch.linalg.cross(e1, e2)], dim=-1)


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
    bonds, angles, torsions = _internal(x, z_matrix)
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
    features = label_space.features(c)
    # ridge regression on the label's features, each coordinate in units of its own spread
    grand_mean = (w[:, None] * raw).sum(0)
    scale = torch.sqrt((w[:, None] * (raw - grand_mean) ** 2).sum(0)).clamp(1e-6)
    target = (raw - grand_mean) / scale
    penalty = torch.full((features.shape[1],), 20.0 / len(raw), dtype=torch.float64)
    penalty[0] = 0.0
    gram = features.T @ (w[:, None] * features) + torch.diag(penalty) + 1e-10 * torch.eye(len(penalty))
    coefficients = torch.linalg.solve(gram, features.T @ (w[:, None] * target)) * scale
    coefficients[0] += grand_mean
    residual = (raw - features @ coefficients) / scale
    covariance = residual.T @ (w[:, None] * residual)
    # shrink towards the diagonal as if n_linear further frames had been uncorrelated
    shrink = n_linear / (n_linear + len(raw))
    covariance = (1 - shrink) * covariance + shrink * torch.diag(torch.diagonal(covariance).clamp(1e-6))
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(1e-5)
    # the symmetric root changes little from fit to fit, so that a network can go on from its previous weights
    mixing = (vectors * torch.sqrt(values)) @ vectors.T * scale
    unmixing = ((vectors / torch.sqrt(values)) @ vectors.T) / scale[:, None]
    fitted = dict(vars(plain), coefficients=coefficients.numpy(), mixing=mixing.numpy(), unmixing=unmixing.numpy())
    return Representation(**fitted)
