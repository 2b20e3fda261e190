"""System folders from PDB files: what is written runs, and what cannot be written leaves nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from openmm import app

from openmm_sgm.cli import main
from openmm_sgm.new_system import new_system, torsions_to_choose_from
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system
from openmm_sgm.units import InputError

SYSTEMS = Path(__file__).parents[1] / "systems"
ALANINE = SYSTEMS / "alanine_dipeptide_vacuum" / "topology.pdb"
CYCLIC = Path(__file__).parent / "data" / "cyclic_peptide.pdb"
SERINE = SYSTEMS / "serine_dipeptide_vacuum" / "topology.pdb"


def without_hydrogens(pdb: Path, to: Path) -> Path:
    lines = [line for line in pdb.read_text().splitlines(keepends=True) if line[76:78].strip() != "H"]
    to.write_text("".join(line for line in lines if not line.startswith("CONECT")))
    return to


def test_alanine_dipeptide_gets_the_cvs_of_its_own_folder(tmp_path: Path) -> None:
    chosen = new_system(tmp_path / "mine", ALANINE)
    molecule = load_system(tmp_path / "mine")
    own = load_system(ALANINE.parent)
    assert [(cv.name, tuple(cv.atoms)) for cv in molecule.cvs] == [(cv.name, tuple(cv.atoms)) for cv in own.cvs]
    assert molecule.bins == own.bins
    assert molecule.physical_xml == own.physical_xml
    assert {choice.name for choice in chosen[:2]} == {"phi", "psi"}


def test_hydrogens_are_added_where_there_are_none(tmp_path: Path) -> None:
    bare = without_hydrogens(SERINE, tmp_path / "serine.pdb")
    assert len(list(app.PDBFile(str(bare)).topology.atoms())) < 15
    new_system(tmp_path / "serine", bare, solvent="obc")
    assert load_system(tmp_path / "serine").n_atoms == load_system(SERINE.parent).n_atoms


def test_torsions_about_rings_and_amides_are_not_offered() -> None:
    choices = torsions_to_choose_from(app.PDBFile(str(SERINE)).topology)
    meanings = [choice.meaning for choice in choices]
    assert [choice.name for choice in choices] == ["phi", "psi", "chi1"]
    assert meanings == ["phi of SER 2, about N - CA", "psi of SER 2, about CA - C", "chi1 of SER 2, about CA - CB"]


def test_side_chains_have_their_names_but_for_rings(proline: MolecularSystem) -> None:
    """Proline's chi1 to chi5 lie in its ring."""
    assert not [choice for choice in torsions_to_choose_from(proline.topology) if "chi" in choice.name]


def test_a_choice_in_the_file_can_be_put_back(tmp_path: Path) -> None:
    new_system(tmp_path / "serine", SERINE)
    path = tmp_path / "serine" / "system.toml"
    head, tail = path.read_text().split("\n# chi1 of SER 2, about CA - CB\n")
    path.write_text(head + "\n" + tail.replace("# ", ""))
    assert len(load_system(tmp_path / "serine").cvs) == 3


def test_added_hydrogens_are_the_same_each_time(tmp_path: Path) -> None:
    """OpenMM draws their first places from Python's own `random`: each call wrote another start, 0.2 nm apart."""
    bare = without_hydrogens(SERINE, tmp_path / "serine.pdb")
    written = []
    for k, (state, seed) in enumerate(((1, 0), (2, 0), (1, 5))):
        random.seed(state)
        after = random.getstate()
        new_system(tmp_path / str(k), bare, seed=seed)
        assert random.getstate() == after  # the user's own is left alone
        written.append((tmp_path / str(k) / "topology.pdb").read_bytes())
    assert written[0] == written[1] != written[2]
    assert b"REMARK" not in written[0]  # with the date


def test_the_bonds_of_the_file_are_kept(tmp_path: Path) -> None:
    """The bond that closes a cyclic peptide is in a CONECT record, which OpenMM writes for other residues alone: the
    folder's own topology did not fit the force field."""
    new_system(tmp_path / "cyclo", CYCLIC)
    given = app.PDBFile(str(CYCLIC)).topology
    molecule = load_system(tmp_path / "cyclo")
    assert {frozenset(pair) for pair in molecule.bonds.tolist()} == bonds(given)
    assert frozenset((0, 46)) in bonds(given)
    assert [atom.name for atom in molecule.topology.atoms()] == [atom.name for atom in given.atoms()]


def bonds(topology: app.Topology) -> set[frozenset[int]]:
    return {frozenset((bond.atom1.index, bond.atom2.index)) for bond in topology.bonds()}


def test_a_file_without_bonds_is_told_so(tmp_path: Path) -> None:
    """A ligand without CONECT records: it was said to hold no torsion."""
    text = SERINE.read_text()
    for name in ("ACE", "SER", "NME"):
        text = text.replace(name, "LIG")
    nameless = tmp_path / "ligand.pdb"
    nameless.write_text("".join(line for line in text.splitlines(True) if not line.startswith("CONECT")))
    with pytest.raises(InputError, match=r"ligand.pdb has no bonds: .* CONECT records"):
        new_system(tmp_path / "ligand", nameless)
    assert not (tmp_path / "ligand").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"force_field": "nothing.xml"}, "nothing.xml"),
        ({"force_field": "tip3p.xml"}, "does not fit"),
        ({"solvent": "tea"}, "solvent must be one of"),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        new_system(tmp_path / "mine", ALANINE, **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "mine").exists()


def test_existing_folders_and_files_that_are_no_pdb_are_refused(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        new_system(tmp_path / "kept", ALANINE)
    assert (tmp_path / "kept").read_text() == "mine"
    with pytest.raises(InputError, match="cannot be read"):
        new_system(tmp_path / "mine", tmp_path / "none.pdb")


def test_the_command_tells_what_may_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", str(tmp_path / "serine"), "--pdb", str(SERINE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["CV", "CV"]
    assert "chi1 of SER 2, about CA - CB" in lines[2]
    assert lines[-1].startswith("openmm-sgm run ")
    assert main(["new", str(tmp_path / "serine"), "--pdb", str(SERINE)]) == 2
    assert "exists already" in capsys.readouterr().err
