"""A system folder from a PDB file: hydrogens added where they are missing, and torsions to choose CVs from."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

from .files import check_size
from .rotatable import first_heavy, rotatable_bonds
from .structure_files import write_pdb
from .system_file import MOST_STRUCTURE, load_system
from .units import InputError, one_line
from .xml_files import force_field_path

__all__ = ["SOLVENTS", "TorsionChoice", "new_system", "torsions_to_choose_from"]

SOLVENTS = {"vacuum": (), "obc": ("amber99_obc.xml",)}
"""Force-field files besides that of the molecule."""
FORCE_FIELD = "amber99sbildn.xml"
BINS = 36


class TorsionChoice(NamedTuple):
    """A torsion that may be a CV: its name, its atoms (zero-based), and what it is in words."""

    name: str
    atoms: tuple[int, int, int, int]
    meaning: str


def new_system(
    folder: Path,
    pdb: Path,
    *,
    force_field: str = FORCE_FIELD,
    solvent: str = "vacuum",
    add_hydrogens: bool = False,
    trust: bool = False,
    seed: int = 0,
) -> list[TorsionChoice]:
    """Write a system folder for a molecule, and return its torsions, those that were taken as CVs first.

    The CVs are φ and ψ of the protein residue in the middle, or else the first two torsions there are; the others stand
    in system.toml as comments. The folder is loaded once, so that what is written is known to run.

    Parameters
    ----------
    folder : must not exist
    pdb : the molecule, complete but for hydrogens
    force_field : a name of OpenMM's, or a file, which is copied
    solvent : "vacuum" or "obc" (generalised Born; with the AMBER force fields)
    add_hydrogens : at pH 7; they are added anyway where there are none
    trust : let a force-field file of the user's run code
    seed : of the places where hydrogens are put first, before their energy is minimised

    Raises
    ------
    InputError
        where the file cannot be read or has no bonds, the force field does not fit it, or it has no torsion; nothing is
        left behind.
    """
    if solvent not in SOLVENTS:
        raise InputError(f"solvent must be one of {', '.join(SOLVENTS)}, got '{solvent}'")
    try:
        check_size(pdb, MOST_STRUCTURE)
        structure = app.PDBFile(str(pdb))
    except Exception as error:  # the reader raises whatever the first broken field leads to
        raise InputError(f"{pdb} cannot be read as a PDB file: {one_line(error)}") from None
    if not structure.topology.getNumBonds():
        raise InputError(
            f"{pdb} has no bonds: its residues are none that OpenMM knows, so give them CONECT records, or write "
            "system.toml by hand"
        )
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"{folder} exists already: choose a new folder") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from None
    try:
        files = [_force_field_file(folder, force_field), *SOLVENTS[solvent]]
        topology, positions = structure.topology, structure.positions
        added = add_hydrogens or not any(atom.element is app.element.hydrogen for atom in topology.atoms())
        if added:
            topology, positions = _with_hydrogens(folder, files, topology, positions, trust, seed)
        _write_structure(folder / "topology.pdb", topology, positions)
        torsions = torsions_to_choose_from(topology)
        if not torsions:
            raise InputError(f"{pdb} holds no torsion about a rotatable bond: write system.toml with other CVs by hand")
        (folder / "system.toml").write_text(_system_toml(folder.name, files, torsions), encoding="utf-8")
        (folder / "README.md").write_text(_readme(folder.name, pdb.name, files, added, torsions), encoding="utf-8")
        load_system(folder, trust)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return torsions


def _force_field_file(folder: Path, name: str) -> str:
    """Return the name to write; a file of the user's is copied into the folder."""
    path = Path(name)
    if path.is_file():
        shutil.copy(path, folder / path.name)
        return path.name
    return name


def _write_structure(path: Path, topology: app.Topology, positions: unit.Quantity) -> None:
    """Write a PDB file from which the same bonds are read again.

    OpenMM's writer has CONECT records for bonds of residues that it does not know, and for disulfides. Whatever else
    its reader does not find by itself, such as the bond that closes a cyclic peptide, is added here.
    """

    write_pdb(path, topology, positions)
    bonds = _bonds(topology)
    lacking = bonds - _bonds(app.PDBFile(str(path)).topology)
    if lacking:
        write_pdb(path, topology, positions, sorted(lacking))
    if _bonds(app.PDBFile(str(path)).topology) != bonds:
        raise InputError(
            "this molecule's bonds cannot be kept in a PDB file: write a system folder by hand, with a .cif file or a "
            "system.xml"
        )


def _bonds(topology: app.Topology) -> set[tuple[int, int]]:
    """Return the bonds as ascending pairs of indices."""
    return {(min(pair), max(pair)) for pair in ((bond.atom1.index, bond.atom2.index) for bond in topology.bonds())}


@contextlib.contextmanager
def _random_from(seed: int) -> Iterator[None]:
    """Within, Python's `random`, from which OpenMM's Modeller draws, begins at a seed; then it goes on as before."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _with_hydrogens(
    folder: Path, files: list[str], topology: app.Topology, positions: unit.Quantity, trust: bool, seed: int
) -> tuple[app.Topology, unit.Quantity]:
    """Return the molecule with hydrogens, the same for the same seed: minimised on the one platform that is so."""
    try:
        forces = app.ForceField(*(force_field_path(folder, name, trust) for name in files))
        modeller = app.Modeller(topology, positions)
        with _random_from(seed):
            modeller.addHydrogens(forces, platform=openmm.Platform.getPlatformByName("Reference"))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"hydrogens cannot be added with {' + '.join(files)}: {one_line(error)}") from None
    return modeller.topology, modeller.positions


def torsions_to_choose_from(topology: app.Topology) -> list[TorsionChoice]:
    """Return the backbone and side-chain torsions of a protein, the middle residue's φ and ψ first, then all others
    about bonds between heavy atoms that can rotate (no ring, no peptide or double bond known as such)."""
    atoms = list(topology.atoms())
    found: list[TorsionChoice] = []
    rotatable = rotatable_bonds(topology)
    backbone, side_chains = _protein_torsions(topology, {frozenset(bond) for bond in rotatable})
    middles = sorted({row[0] for row in backbone if {"phi", "psi"} <= {r[1] for r in backbone if r[0] == row[0]}})
    middle = middles[len(middles) // 2] if middles else -1
    for rows in (backbone, side_chains):
        for index, kind, indices, residue in sorted(rows, key=lambda row: (row[0] != middle, row[0], row[1])):
            name = kind if index == middle else f"{kind}_{index}"
            bond = " - ".join(atoms[i].name for i in indices[1:3])
            found.append(TorsionChoice(name, indices, f"{kind} of {residue}, about {bond}"))  # type: ignore[arg-type]
    taken = {frozenset(choice.atoms[1:3]) for choice in found}
    for a, b in rotatable:
        if frozenset((a, b)) not in taken:
            ends = [first_heavy(topology, here, other) for here, other in ((a, b), (b, a))]
            if None not in ends:
                name = "_".join(f"{atoms[i].residue.index}{atoms[i].name}" for i in (a, b))
                words = f"about {atoms[a].residue.name} {atoms[a].name} - {atoms[b].residue.name} {atoms[b].name}"
                found.append(TorsionChoice(name.replace("'", "p"), (ends[0], a, b, ends[1]), words))  # type: ignore[arg-type]
    return found


def _protein_torsions(
    topology: app.Topology, rotatable: set[frozenset[int]]
) -> list[list[tuple[int, str, tuple[int, ...], str]]]:
    """Return (residue's index, kind, atoms, residue in words) of φ and ψ, and of the χ that are in no ring."""
    atoms = list(topology.atoms())
    trajectory = mdtraj.Trajectory(np.zeros((1, len(atoms), 3)), mdtraj.Topology.from_openmm(topology))
    found: list[list[tuple[int, str, tuple[int, ...], str]]] = []
    for kinds in (("phi", "psi"), ("chi1", "chi2", "chi3", "chi4", "chi5")):
        found.append([])
        for kind in kinds:
            for indices in getattr(mdtraj, f"compute_{kind}")(trajectory)[0].tolist():
                residue = atoms[indices[2] if kind == "phi" else indices[1]].residue
                if kind in ("phi", "psi") or frozenset(indices[1:3]) in rotatable:
                    found[-1].append((residue.index, kind, tuple(indices), f"{residue.name} {residue.id}"))
    return found


def _readme(name: str, pdb: str, files: list[str], added: bool, torsions: list[TorsionChoice]) -> str:
    hydrogens = "Missing hydrogens were added at pH 7. " if added else ""
    cvs = " and ".join(f"{choice.name} ({choice.meaning})" for choice in torsions[:2])
    return (
        f"# {name}\n\nMade from {pdb} by `openmm-sgm new`, with {' and '.join(files)}. {hydrogens}"
        f"Collective variables: {cvs}; system.toml has the others to choose from.\n\n"
        f"    openmm-sgm run {name} --output {name}_run\n"
    )


def _system_toml(name: str, files: list[str], torsions: list[TorsionChoice]) -> str:
    lines = [
        f"name = {json.dumps(name)}",
        'topology = "topology.pdb"',
        f"force_field = {json.dumps(files)}",
        'nonbonded_method = "NoCutoff"',
        'constraints = "HBonds"',
        "temperature_k = 300.0",
        "time_step_fs = 2.0",
        "friction_per_ps = 1.0",
        "",
        "# The collective variables: one to three. Take away or put back the # to choose others. A torsion that turns",
        "# freely within picoseconds need not be one. The run tells where one that is none is slow.",
    ]
    for k, choice in enumerate(torsions):
        mark = "" if k < 2 else "# "
        lines += [
            "",
            f"# {choice.meaning}",
            f"{mark}[[cv]]",
            f"{mark}name = {json.dumps(choice.name)}",
            f'{mark}kind = "torsion"',
            f"{mark}atoms = {list(choice.atoms)}",
            f"{mark}bins = {BINS}",
        ]
    return "\n".join(lines) + "\n"
