"""System folders from PDB files: what is written runs, and what cannot be written leaves nothing."""

from __future__ import annotations

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
