"""Z-matrices over the bond graph: which atoms place which, and the map between positions and internal coordinates.

The atom that closes a ring is placed by its two bonds into the ring and a torsion about the line between the atoms that
they lead to. Placed by a bond, an angle and a torsion along the chain, its other bond, as stiff as any, would be a
crooked function of all of the ring's coordinates: generated configurations of capped proline then counted for a third
(measured).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .units import InputError

__all__ = [
    "ZMatrix",
    "body_frame",
    "build_z_matrix",
    "internal_coordinates",
    "log_volume_element",
    "out_of_reach",
    "place_atoms",
]

HEAVY = 1.5
"""amu; atoms below are hydrogens."""
FLAT = 1e-9


@dataclass(frozen=True)
class ZMatrix:
    """How each atom is placed: `order[i]` by a bond to, an angle with and a torsion over `references[i]`.

    Attributes
    ----------
    order : int64, shape (n,); atoms in the order of placement (virtual sites are left out)
    references : int64, shape (n, 3); for atom i its parent, grandparent and third reference, −1 where there is none
    constant_bonds : float64, shape (n,), nm; the constrained length, NaN for a bond that is a coordinate
    cv_torsions : int64, shape (n,); index of the CV that the torsion of this placement is, −1 for none
    closing : bool, shape (n,); where the second reference is bonded to the atom, and not to the first: instead of the
        angle, the coordinate is the length of that bond
    """

    order: np.ndarray
    references: np.ndarray
    constant_bonds: np.ndarray
    cv_torsions: np.ndarray
    closing: np.ndarray


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
    if len(_bonded_piece(real[0], neighbours)) < len(real):
        raise InputError("the molecule is in several pieces; one bonded molecule is supported")
    # Terminal heavy atoms first: of roots that make equally many CV torsions coordinates the first is taken.
    heavy = [a for a in real if masses[a] > HEAVY]
    roots = dict.fromkeys([a for a in heavy if sum(b in heavy for b in neighbours[a]) <= 1] + heavy + real)
    candidates = [_place_from(root, neighbours, masses, torsion_cvs) for root in roots]
    order, references, cv_torsions, closing = max(candidates, key=lambda c: sum(k >= 0 for k in c[2]))
    lengths = {frozenset((int(i), int(j))): float(length) for i, j, length in constraints}
    constant = np.full(len(order), np.nan)
    for row in range(1, len(order)):
        constant[row] = lengths.pop(frozenset((order[row], references[row][0])), np.nan)
    if lengths:
        raise InputError("constraints that close a ring are not supported; use constraints = 'HBonds'")
    return ZMatrix(np.array(order), np.array(references), constant, np.array(cv_torsions), np.array(closing))


def _bonded_piece(start: int, neighbours: dict[int, list[int]]) -> set[int]:
    found, stack = {start}, [start]
    while stack:
        new = [n for n in neighbours[stack.pop()] if n not in found]
        found.update(new)
        stack.extend(new)
    return found


def _place_from(
    root: int,
    neighbours: dict[int, list[int]],
    masses: np.ndarray,
    torsion_cvs: Sequence[tuple[int, ...] | None],
) -> tuple[list[int], list[tuple[int, int, int]], list[int], list[bool]]:
    """Place atoms breadth first from `root`: (order, references, CV index per torsion, whether it closes a ring)."""
    wanted = {}
    for k, atoms in enumerate(torsion_cvs):
        if atoms is not None:
            wanted[tuple(atoms)] = k
            wanted[tuple(reversed(atoms))] = k
    in_cv = {atom for atoms in wanted for atom in atoms}

    def priority(atom: int) -> tuple[bool, bool, int]:
        return (atom not in in_cv, masses[atom] < HEAVY, atom)

    order = [root]
    parent = {root: -1}
    first_child: dict[int, int] = {}
    sibling: dict[int, int] = {}  # the first child that others of the same centre are placed against
    references = [(-1, -1, -1)]
    cv_index, closing = [-1], [False]
    queue: deque[int] = deque()

    def place(atom: int, centre: int) -> None:
        """Choose references of `atom`, bonded to the already placed `centre`."""
        b = parent[centre] if parent[centre] >= 0 else first_child.get(centre, -1)
        a, cv = -1, -1
        ring = [n for n in neighbours[atom] if n in parent and n not in (centre, b)]
        if b >= 0 and ring and not any((atom, centre, b, n) in wanted for n in neighbours[b]):
            a, b = b, ring[0]
            sibling[atom] = b  # what hangs on the atom is placed against its other bond into the ring
        elif b >= 0 and centre in sibling:
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
        closing.append(b in ring)
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
    return order, references, cv_index, closing


def internal_coordinates(positions: torch.Tensor, z_matrix: ZMatrix) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return bonds (n, m−1), angles (n, m−2) and torsions (n, m−3) of placed atoms; positions (n, atoms, 3) nm.

    In place of the angle of an atom that closes a ring stands the length of its second bond, nm.
    """
    order, refs = torch.as_tensor(z_matrix.order), torch.as_tensor(z_matrix.references)
    r0, r1 = positions[:, order[1:]], positions[:, refs[1:, 0]]
    bonds = (r0 - r1).norm(dim=-1)
    u = (r0 - r1)[:, 1:] / bonds[:, 1:, None]
    v = positions[:, refs[2:, 1]] - positions[:, refs[2:, 0]]
    v = v / v.norm(dim=-1, keepdim=True)
    # atan2 of the half-angle form is accurate near 0 and π, where acos is not
    angles = 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
    closing = torch.as_tensor(z_matrix.closing[2:])
    if closing.any():
        second = (positions[:, order[2:]] - positions[:, refs[2:, 1]]).norm(dim=-1)
        angles = torch.where(closing, second, angles)
    b1 = positions[:, refs[3:, 1]] - positions[:, refs[3:, 2]]
    b2 = positions[:, refs[3:, 0]] - positions[:, refs[3:, 1]]
    b3 = positions[:, order[3:]] - positions[:, refs[3:, 0]]
    c1, c2 = torch.linalg.cross(b2, b3), torch.linalg.cross(b1, b2)
    torsions = torch.atan2((b1 * c1).sum(-1) * b2.norm(dim=-1), (c1 * c2).sum(-1))
    return bonds, angles, torsions


def place_atoms(
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
    closing = z_matrix.closing.tolist()
    sin_t, cos_t = torch.sin(torsions), torch.cos(torsions)
    for i in range(3, len(order)):
        c, b, a = (placed[k] for k in refs[i])
        e1 = c - b
        e1 = e1 / e1.norm(dim=-1, keepdim=True)
        normal = torch.linalg.cross(b - a, e1)
        normal = normal / normal.norm(dim=-1, keepdim=True)
        e2 = torch.linalg.cross(normal, e1)
        r, st, ct = bonds[:, i - 1, None], sin_a[:, i - 2, None], cos_a[:, i - 2, None]
        if closing[i]:
            ct = _cosine_between(r, (c - b).norm(dim=-1, keepdim=True), angles[:, i - 2, None])
            st = torch.sqrt(1 - ct**2)
        placed[order[i]] = c + r * (-ct * e1 + st * (cos_t[:, i - 3, None] * e2 + sin_t[:, i - 3, None] * normal))
    sites = torch.stack([zero, zero, zero], -1)
    return torch.stack([placed.get(atom, sites) for atom in range(n_atoms)], dim=1)


def log_volume_element(
    bonds: torch.Tensor, angles: torch.Tensor, positions: torch.Tensor, z_matrix: ZMatrix
) -> torch.Tensor:
    """Return the log of the volume in positions of a unit of bonds, angles and torsions, shape (n,); no rotation.

    Π b² sin θ; for an atom that closes a ring by bonds of lengths b and b' to atoms d apart, b b'/d.
    """
    closing = torch.as_tensor(z_matrix.closing[2:])
    if not closing.any():
        return 2 * torch.log(bonds).sum(1) + torch.log(torch.sin(angles)).sum(1)
    refs = torch.as_tensor(z_matrix.references[2:])[closing]
    apart = (positions[:, refs[:, 0]] - positions[:, refs[:, 1]]).norm(dim=-1)
    rings = torch.log(angles[:, closing]) - torch.log(bonds[:, 1:][:, closing]) - torch.log(apart)
    return 2 * torch.log(bonds).sum(1) + torch.log(torch.sin(angles[:, ~closing])).sum(1) + rings.sum(1)


def out_of_reach(bonds: torch.Tensor, angles: torch.Tensor, positions: torch.Tensor, z_matrix: ZMatrix) -> torch.Tensor:
    """Return whether a ring cannot be closed: two bonds do not span the distance between the atoms that they lead to,
    or the difference of the two is longer than it; bool, shape (n,)."""
    closing = torch.as_tensor(z_matrix.closing[2:])
    refs = torch.as_tensor(z_matrix.references[2:])[closing]
    apart = (positions[:, refs[:, 0]] - positions[:, refs[:, 1]]).norm(dim=-1)
    first, second = bonds[:, 1:][:, closing], angles[:, closing]
    inside = (apart < first + second) & (apart > (first - second).abs())
    return ~inside.all(1)


def _cosine_between(first: torch.Tensor, apart: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosine of the angle between the sides `first` and `apart` of a triangle, `second` opposite to it;
    where there is no such triangle, nearly that of a flat one."""
    cosine = (first**2 + apart**2 - second**2) / (2 * first * apart)
    return cosine.clamp(-1 + FLAT, 1 - FLAT)


def body_frame(positions: torch.Tensor, z_matrix: ZMatrix) -> torch.Tensor:
    """Return rotations (n, 3, 3) with which row vectors turn from the given frame to that of `place_atoms`."""
    order = z_matrix.order
    x0, x1, x2 = (positions[:, order[k]] for k in range(3))
    e1 = x1 - x0
    e1 = e1 / e1.norm(dim=-1, keepdim=True)
    e2 = x2 - x0
    e2 = e2 - (e2 * e1).sum(-1, keepdim=True) * e1
    e2 = e2 / e2.norm(dim=-1, keepdim=True)
    return torch.stack([e1, e2, torch.linalg.cross(e1, e2)], dim=-1)
