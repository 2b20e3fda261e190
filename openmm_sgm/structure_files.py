"""Structures and trajectories as files whose bytes follow from what they hold: no time is written into them."""

from __future__ import annotations

import io
from pathlib import Path

import mdtraj
from openmm import app, unit

from .files import replacing, write_atomically

__all__ = ["write_dcd", "write_pdb"]

_DATED = "REMARK   1 CREATED WITH OPENMM"
_TITLES_AT, _TITLE = 100, 80
"""In a DCD file: bytes before the titles (a record of 84 bytes, a record's length and a number), and of each title."""
_TITLES = (b"Created by DCD plugin", b"REMARKS weighted samples of openmm_sgm")


def write_pdb(path: Path, topology: app.Topology, positions: unit.Quantity) -> None:
    """Write a PDB file as OpenMM does, without the line that says when."""
    text = io.StringIO()
    app.PDBFile.writeFile(topology, positions, text, keepIds=True)
    lines = text.getvalue().splitlines(keepends=True)
    write_atomically(path, "".join(line for line in lines if not line.startswith(_DATED)))


def write_dcd(path: Path, trajectory: mdtraj.Trajectory) -> None:
    """Write a DCD file as mdtraj does, which puts the time, and bytes of its memory, into the titles: these are ours.

    The second of the two titles of 80 bytes is set by `strftime` in VMD's plugin, and its rest never.
    """
    with replacing(path) as partial:
        trajectory.save_dcd(str(partial))
        with partial.open("r+b") as file:
            file.seek(_TITLES_AT)
            for title in _TITLES:
                file.write(title.ljust(_TITLE, b"\0"))
