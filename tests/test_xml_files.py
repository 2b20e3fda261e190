"""A system's own files run no code unless they are trusted: what they would have run here makes an empty file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import openmm
import pytest
from test_cli import one_sentence, write_system

from openmm_sgm.cli import main
from openmm_sgm.new_system import new_system
from openmm_sgm.system_file import load_system
from openmm_sgm.units import InputError
from openmm_sgm.xml_files import MOST_DEPTH, force_field_path, read_system

ALANINE = Path(__file__).resolve().parents[1] / "systems" / "alanine_dipeptide_vacuum"
FIELD = 'force_field = ["amber99sbildn.xml"]'


@pytest.fixture
def alanine(tmp_path: Path) -> Path:
    """A copy of alanine dipeptide whose force field has a second file, mine.xml."""
    folder = Path(shutil.copytree(ALANINE, tmp_path / "alanine"))
    path = folder / "system.toml"
    assert FIELD in path.read_text()
    path.write_text(path.read_text().replace(FIELD, 'force_field = ["amber99sbildn.xml", "mine.xml"]'))
    return folder


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that code in a test's input makes."""
    return tmp_path / "mark"


def script(mark: Path) -> str:
    return f"__import__('pathlib').Path('{mark}').touch()"


SCRIPTED = {
    "script": "<ForceField><Script>{}</Script></ForceField>",
    "at once": "<ForceField><InitializationScript>{}</InitializationScript></ForceField>",
    "an attribute": '<ForceField><NonbondedForce coulomb14scale="0.8333333333333334" lj14scale="0.5" '
    'useDispersionCorrection="{}"/></ForceField>',
    "another attribute": '<ForceField><LennardJonesForce lj14scale="0.5" useDispersionCorrection="{}"/></ForceField>',
}


@pytest.mark.parametrize("case", SCRIPTED)
def test_a_force_field_with_code(case: str, alanine: Path, mark: Path) -> None:
    """Broken on purpose: without the check the mark is made, by each of the four."""
    (alanine / "mine.xml").write_text(SCRIPTED[case].format(script(mark)))
    with pytest.raises(InputError, match=r"'mine\.xml' (holds a <|has code for ).*add --trust") as caught:
        load_system(alanine)
    assert len(str(caught.value).splitlines()) == 1
    assert not mark.exists()


@pytest.mark.parametrize("case", ["script", "at once"])
def test_a_trusted_force_field_runs_its_code(case: str, alanine: Path, mark: Path) -> None:
    (alanine / "mine.xml").write_text(SCRIPTED[case].format(script(mark)))
    assert load_system(alanine, trust=True).n_atoms == 22
    assert mark.exists()


def test_included_files_are_looked_at(alanine: Path, mark: Path) -> None:
    (alanine / "more").mkdir()
    (alanine / "mine.xml").write_text('<ForceField><Include file="more/a.xml"/></ForceField>')
    (alanine / "more" / "a.xml").write_text('<ForceField><Include file="b.xml"/></ForceField>')
    (alanine / "more" / "b.xml").write_text(SCRIPTED["at once"].format(script(mark)))
    with pytest.raises(InputError, match=r"'b\.xml' holds a <InitializationScript>"):
        load_system(alanine)
    assert not mark.exists()


@pytest.mark.parametrize("where", ["absolute", "above", "by the directory of the program"])
def test_included_files_lie_in_the_folder(
    where: str, alanine: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = alanine.parent / "outside.xml"
    outside.write_text(SCRIPTED["at once"].format(script(mark)))
    monkeypatch.chdir(alanine.parent)
    name = {"absolute": str(outside), "above": "../outside.xml"}.get(where, "outside.xml")
    (alanine / "mine.xml").write_text(f'<ForceField><Include file="{name}"/></ForceField>')
    with pytest.raises(InputError, match="lies outside"):
        load_system(alanine)
    assert not mark.exists()


def test_openmm_files_are_openmm_s(alanine: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the same name where the program was started is none of them."""
    (alanine / "mine.xml").write_text('<ForceField><Include file="amber14/tip3p.xml"/></ForceField>')
    (alanine.parent / "amber99sbildn.xml").write_text(SCRIPTED["at once"].format(script(mark)))
    monkeypatch.chdir(alanine.parent)
    assert load_system(alanine).n_atoms == 22
    assert not mark.exists()


def test_openmm_force_fields_with_scripts_are_trusted(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ALANINE, tmp_path / "alanine"))
    path = folder / "system.toml"
    path.write_text(path.read_text().replace(FIELD, 'force_field = ["amber14-all.xml", "implicit/obc2.xml"]'))
    forces = [type(force).__name__ for force in load_system(folder).system.getForces()]
    assert any("GB" in name for name in forces), forces


@pytest.mark.parametrize("name", ["nothing.xml", "data", ""])
def test_a_force_field_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no force field"):
        force_field_path(tmp_path, name)


def test_new_refuses_a_force_field_with_code(tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    field = tmp_path / "mine.xml"
    field.write_text(f'<ForceField><Include file="amber99sbildn.xml"/><Script>{script(mark)}</Script></ForceField>')
    given = ["new", str(tmp_path / "new"), "--pdb", str(ALANINE / "topology.pdb"), "--force-field", str(field)]
    assert main(given) == 2
    assert "holds a <Script>" in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()
    assert not mark.exists()
    assert main([*given, "--trust"]) == 0
    assert mark.exists()
    new_system(tmp_path / "plain", ALANINE / "topology.pdb")


# serialised systems


class Touch:
    """A computation whose pickle makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)

    def __call__(self, state: Any) -> None:
        raise NotImplementedError


def python_force(mark: Path) -> openmm.Force:
    if not hasattr(openmm, "PythonForce"):
        pytest.skip("this OpenMM has no PythonForce")
    return openmm.PythonForce(Touch(mark))


def within(force: openmm.Force, depth: int) -> openmm.Force:
    for _ in range(depth):
        outer = openmm.CustomCVForce("a")
        outer.addCollectiveVariable("a", force)
        force = outer
    return force


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_python_force_is_not_unpickled(depth: int, tmp_path: Path, mark: Path) -> None:
    """Broken on purpose: without the check the mark is made, at each depth."""
    folder = write_system(tmp_path / "system", within(python_force(mark), depth))
    mark.unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"'system\.xml' holds a PythonForce.*add --trust"):
        load_system(folder)
    assert not mark.exists()
    read_system_of(folder, trust=True)
    assert mark.exists()


def read_system_of(folder: Path, trust: bool) -> None:
    """Read the system; its Python force is a path that was touched, which OpenMM cannot call."""
    try:
        read_system(folder / "system.xml", trust)
    except InputError:
        assert trust


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("<Force ", "<Energy ").replace("</Force>", "</Energy>"),
        lambda text: text.replace("<Forces>", "<!-- > -->\n<Forces>"),
        lambda text: text.replace('type="PythonForce"', "type = 'PythonForce'"),
        lambda text: text.replace('type="PythonForce"', 'type="&#80;ythonForce"'),
    ],
)
def test_a_python_force_that_is_written_in_another_way(spoil: Any, tmp_path: Path, mark: Path) -> None:
    path = write_system(tmp_path / "system", python_force(mark)) / "system.xml"
    mark.unlink(missing_ok=True)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match="PythonForce"):
        read_system(path)
    assert not mark.exists()


def test_a_comment_hides_nothing(tmp_path: Path, mark: Path) -> None:
    """OpenMM's reader ends this comment at its first '>', where XML does not; it is not given the comment."""
    path = write_system(tmp_path / "system") / "system.xml"
    text = openmm.XmlSerializer.serialize(python_force(mark))
    mark.unlink(missing_ok=True)
    force = text[text.index("<Force") :]
    path.write_text(path.read_text().replace("<Forces>", f"<Forces><!-- > {force} -->"))
    system = read_system(path)
    assert [type(force).__name__ for force in system.getForces()] == ["HarmonicBondForce", "HarmonicAngleForce"]
    assert not mark.exists()


def test_the_force_of_a_plugin_is_refused(tmp_path: Path) -> None:
    path = write_system(tmp_path / "system") / "system.xml"
    path.write_text(path.read_text().replace('type="HarmonicBondForce"', 'type="TorchForce"'))
    with pytest.raises(InputError, match=r"'TorchForce', none of OpenMM's.*add --trust"):
        read_system(path)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    """Text with what XML escapes, a table, a nested force: the same system as without the check."""
    custom = openmm.CustomCVForce("step(r<1)*k*(r>0) + table(r)")
    custom.addCollectiveVariable("r", openmm.CustomBondForce("r"))
    custom.addGlobalParameter("k", 0.1 + 0.2)
    custom.addTabulatedFunction("table", openmm.Continuous1DFunction([0.1, 1 / 3, 1e-300], 0, 1))
    custom.setName('a "name" & <more>')
    path = write_system(tmp_path / "system", within(custom, 2)) / "system.xml"
    assert openmm.XmlSerializer.serialize(read_system(path)) == path.read_text()


UNSAFE = {
    "an entity": ('<!DOCTYPE a [<!ENTITY b "c">]><System type="System">&b;</System>', "document type"),
    "a document type": ("<!DOCTYPE a><System/>", "document type"),
    "two bytes a character": ('<?xml version="1.0"?><!DOCTYPE a><System/>'.encode("utf-16"), "document type"),
    "depth": ("<a>" * (MOST_DEPTH + 1) + "</a>" * (MOST_DEPTH + 1), "nested too deeply"),
    "no XML": ("{}", "cannot be read"),
    "nothing": ("", "cannot be read"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_xml_is_refused(case: str, tmp_path: Path) -> None:
    content, message = UNSAFE[case]
    path = tmp_path / "system.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (lambda: read_system(path), lambda: force_field_path(tmp_path, "system.xml")):
        with pytest.raises(InputError, match=message):
            read()


@pytest.mark.parametrize("verb", ["run", "compare", "train"])
def test_the_command_line_refuses_code(
    verb: str, tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = write_system(tmp_path / "system", python_force(mark))
    mark.unlink(missing_ok=True)
    more = ["--trajectory", "x.dcd"] if verb == "train" else []
    assert main([verb, str(system), "--output", str(tmp_path / "out"), *more]) == 2
    assert "PythonForce" in one_sentence(capsys.readouterr().err)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
