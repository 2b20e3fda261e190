"""Folders of others and of one's own: only the program's names are written and deleted, and no link is followed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import TOML, one_sentence, snapshot, write_system
from test_runfolder import new_sampler

from openmm_sgm.cli import main
from openmm_sgm.compare import _prepare as prepare_comparison
from openmm_sgm.compare import read_comparison
from openmm_sgm.files import PARTIAL, replacing, write_atomically
from openmm_sgm.folders import COMPARISON, RUN, delete_partials, names_in, refuse_strangers
from openmm_sgm.journal import Journal
from openmm_sgm.report import write_report
from openmm_sgm.runfolder import _remove_older, keep, prepare
from openmm_sgm.status import describe, holder, locked
from openmm_sgm.units import InputError

STATUS = '{"state": "finished", "force_evaluations": 1, "budget": 1, "history": [], "command": "openmm-sgm run"}'
PACKAGE = Path(__file__).resolve().parents[1] / "openmm_sgm"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that looks like a run's, with a file in each subfolder."""
    folder = tmp_path / "run"
    for name in RUN.folders:
        (folder / name).mkdir(parents=True)
        (folder / name / "inside").write_text("x")
    for name in RUN.files:
        (folder / name).write_text("{}")
    (folder / "status.json").write_text(STATUS)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of a user's, with a file in it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "precious.unit").write_text("a user's own")
    (folder / "precious.tmp").write_text("a user's own")
    return folder


VERBS: dict[str, Callable[[Path], Any]] = {
    "resume": lambda folder: prepare(folder, True),
    "begin": lambda folder: prepare(folder, False),
    "status": describe,
    "report": write_report,
}


def linked(path: Path, target: Path) -> None:
    """Put a link in the place of a file or folder."""
    if path.is_dir():
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", [*RUN.files, *RUN.folders, "state/inside", "failed/inside", "journal/inside"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_link_is_refused(verb: str, name: str, run: Path, elsewhere: Path) -> None:
    """Broken on purpose: without the question, --resume emptied the folder that a linked journal points to."""
    linked(run / name, elsewhere if (run / name).is_dir() else elsewhere / "precious.unit")
    before = snapshot(elsewhere.parent)
    with pytest.raises(InputError, match=f"{re.escape(name)} is a symbolic link, and none is followed here") as caught:
        VERBS[verb](run)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(elsewhere.parent) == before


def test_resume_by_the_command_line_refuses_a_linked_journal(
    run: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked(run / "journal", elsewhere)
    before = snapshot(elsewhere)
    assert main(["run", str(write_system(tmp_path / "system")), "--output", str(run), "--resume"]) == 2
    assert "journal is a symbolic link" in one_sentence(capsys.readouterr().err)
    assert snapshot(elsewhere) == before


@pytest.mark.parametrize("name", ["status.json", "lock", "result.json"])
def test_a_pipe_is_refused_at_once(name: str, run: Path) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(InputError, match="is not the file that belongs under this name"):
        refuse_strangers(run, RUN)


def test_a_file_for_a_folder_is_refused(run: Path) -> None:
    (run / "generator" / "inside").unlink()
    (run / "generator").rmdir()
    (run / "generator").write_text("a user's own")
    with pytest.raises(InputError, match="generator is not the folder that belongs under this name"):
        prepare(run, True)


@pytest.mark.parametrize("name", [*COMPARISON.files, *COMPARISON.folders])
def test_a_comparison_refuses_links(name: str, elsewhere: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    (folder / "rows").mkdir(parents=True)
    linked(folder / name, elsewhere if name == "rows" else elsewhere / "precious.unit")
    before = snapshot(elsewhere)
    for read in (lambda: read_comparison(folder), lambda: prepare_comparison(folder, True, {})):
        with pytest.raises(InputError, match=f"{name} is a symbolic link"):
            read()
    assert snapshot(elsewhere) == before


def test_a_comparison_does_not_write_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "compare.md").write_text("a user's own")
    with pytest.raises(InputError, match=r"would write over .*compare\.md: choose another --output"):
        prepare_comparison(tmp_path, False, {})


def test_a_lock_that_is_a_link_is_not_written_through(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(elsewhere / "precious.unit")
    with pytest.raises(InputError, match="cannot write in"), locked(tmp_path):
        pass
    assert holder(tmp_path) is None
    assert (elsewhere / "precious.unit").read_text() == "a user's own"


@pytest.mark.parametrize("name", ["topology.pdb", "samples.dcd", "report.html", "surface.csv", "generator"])
def test_a_run_does_not_write_over_a_users_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--output .` in a folder with a topology.pdb of one's own, such as the system's folder."""
    system = write_system(tmp_path / "system")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("a user's own")
    (folder / "notes.tmp").write_text("a user's own")
    monkeypatch.chdir(folder)
    before = snapshot(folder)
    assert main(["run", str(system), "--output", "."]) == 2
    assert "choose another --output" in one_sentence(capsys.readouterr().err)
    assert snapshot(folder) == before


def test_the_system_folder_is_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = write_system(tmp_path / "system")
    before = snapshot(system)
    assert main(["run", str(system), "--output", str(system)]) == 2
    assert "topology.pdb is no run's" in one_sentence(capsys.readouterr().err)
    assert snapshot(system) == before


def test_keep_deletes_what_was_being_written_and_no_file_of_a_users(tmp_path: Path) -> None:
    folder, sampler = tmp_path / "run", new_sampler(write_system(tmp_path / "system"))
    theirs = ["notes.tmp", "work/data.tmp", "generator/x.tmp", f"work/.x{PARTIAL}", "chain.npz.tmp"]
    ours = [f".surface.csv.1-2{PARTIAL}", f"generator/.generator.json.1-2{PARTIAL}", f"journal/.ab.unit.1-2{PARTIAL}"]
    for name in (*theirs, *ours):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / f".link{PARTIAL}").symlink_to(folder / "notes.tmp")
    with keep(sampler, folder):
        pass
    assert [name for name in theirs if not (folder / name).exists()] == []
    assert [name for name in (*ours, f".link{PARTIAL}") if os.path.lexists(folder / name)] == []


def test_partials_behind_a_link_stay(elsewhere: Path, tmp_path: Path) -> None:
    (elsewhere / f".x{PARTIAL}").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state").symlink_to(elsewhere)
    delete_partials(tmp_path / "run", RUN)
    assert (elsewhere / f".x{PARTIAL}").exists()


def test_a_journal_clears_its_own_files_alone(elsewhere: Path, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.keep("key", np.arange(3.0))
    (tmp_path / "journal" / "a.training").write_text("x")
    (tmp_path / "journal" / "notes.txt").write_text("a user's own")
    journal.clear()
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["notes.txt"]
    (tmp_path / "linked").symlink_to(elsewhere)
    Journal(tmp_path / "linked").clear()
    assert (elsewhere / "precious.unit").exists()


def test_older_states_are_deleted_by_their_names(tmp_path: Path) -> None:
    ours = ("chain-0.npz", "trials-0.npz", "walkers-0.npz", "ledger-0.csv", "generator-0/generator.json")
    theirs = ("chain-0.backup", "chain-0.npz.tmp", "mine-0.npz", "generator-1/notes.txt", "walkers-3.npz")
    for name in (*ours, *theirs, "generator-1/generator.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    _remove_older(tmp_path, 3)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(theirs)


def test_training_into_a_link_is_refused_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    code = main(["train", str(tmp_path), "--trajectory", "x.dcd", "--output", str(tmp_path / "out")])
    assert code == 2
    assert "is there already and not an empty folder" in one_sentence(capsys.readouterr().err)


# writing


def test_a_link_is_replaced_and_not_written_through(elsewhere: Path, tmp_path: Path) -> None:
    target = elsewhere / "precious.unit"
    (tmp_path / "report.html").symlink_to(target)
    write_atomically(tmp_path / "report.html", "new")
    assert not (tmp_path / "report.html").is_symlink()
    assert (tmp_path / "report.html").read_text() == "new"
    assert target.read_text() == "a user's own"


def test_a_link_under_the_temporary_name_is_not_written_through(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openmm_sgm.files.threading.get_ident", lambda: 7)
    (tmp_path / f".x.{os.getpid()}-7{PARTIAL}").symlink_to(elsewhere / "precious.unit")
    write_atomically(tmp_path / "x", b"new")
    assert (elsewhere / "precious.unit").read_text() == "a user's own"
    assert (tmp_path / "x").read_bytes() == b"new"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def stopped() -> None:
        with replacing(tmp_path / "x") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert snapshot(tmp_path) == {"x": b"old"}


ELSEWHERE = {
    "np.load(": (),
    "import pickle": ("workers.py",),
    "rmtree": ("new_system.py",),
    ".read_text(": ("pages.py",),
    ".read_bytes(": (),
    "json.load(": (),
    "tomllib": ("files.py",),
    ".tmp": (),
    "os.replace": (),
}
"""What only `files` does, and the modules that may: for messages of workers, files of the package, a new folder."""


@pytest.mark.parametrize("call", ELSEWHERE)
def test_files_are_read_and_written_in_one_place(call: str) -> None:
    found = [path.name for path in PACKAGE.glob("*.py") if call in path.read_text(encoding="utf-8")]
    assert set(found) <= set(ELSEWHERE[call]), found


def test_the_tiny_system_has_no_name_of_a_runs_but_its_topology(tmp_path: Path) -> None:
    assert names_in(write_system(tmp_path / "system"), RUN) == ["topology.pdb"]
    assert "topology.pdb" in TOML
