"""Structures and trajectories as files whose bytes follow from what they hold: no time is written into them."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from pathlib import Path

import mdtraj
from openmm import app, unit

from .files import replacing, write_atomically

__all__ = ["write_dcd", "write_pdb"]

_DATED = "REMARK   1 CREATED WITH OPENMM"
_TITLES_AT, _TITLE = 92, 80
"""In a DCD file: bytes before the record of its titles (after one of 84 bytes), and bytes of a title."""


def write_pdb(
    path: Path, topology: app.Topology, positions: unit.Quantity, also_bonded: Iterable[tuple[int, int]] = ()
) -> None:
    """Write a PDB file as OpenMM does, without the line that says when.

    also_bonded : pairs of atoms that get CONECT records besides those that OpenMM's writer has
    """
    text = io.StringIO()
    app.PDBFile.writeFile(topology, positions, text, keepIds=True)
    lines = [line for line in text.getvalue().splitlines(keepends=True) if not line.startswith(_DATED)]
    numbers = [line[6:11] for line in lines if line.startswith(("ATOM  ", "HETATM"))]
    records = [f"CONECT{numbers[i]}{numbers[j]}\n" for i, j in also_bonded]
    write_atomically(path, "".join([*lines[:-1], *records, lines[-1]]))


def write_dcd(path: Path, trajectory: mdtraj.Trajectory) -> None:
    """Write a DCD file as mdtraj does, but for the titles, where VMD's plugin has the time and bytes of its memory."""
    with replacing(path) as partial:
        trajectory.save_dcd(str(partial))
        with partial.open("r+b") as file:
            file.seek(_TITLES_AT)
            length, count = struct.unpack("=2i", file.read(8))
            if length == 4 + count * _TITLE:
                file.write(b"openmm_sgm".ljust(count * _TITLE, b"\0"))
