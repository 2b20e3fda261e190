"""Files are read within bounds, in one sentence and at once; those of structures are the same bytes at any time."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
from openmm import app, unit
from test_cli import write_system

from openmm_sgm import files
from openmm_sgm.cli import _load_generator
from openmm_sgm.compare import read_comparison
from openmm_sgm.files import MOST_JSON, MOST_TOML, open_table, read_arrays, read_bytes, read_json, read_toml
from openmm_sgm.learned import TorchCV
from openmm_sgm.parsl_pool import load_parsl_options
from openmm_sgm.records import RecordError, read_record, write_record
from openmm_sgm.report import write_report
from openmm_sgm.reporter import load_frames
from openmm_sgm.set_aside import load_failed
from openmm_sgm.status import describe
from openmm_sgm.structure_files import write_dcd, write_pdb
from openmm_sgm.system_file import load_system
from openmm_sgm.units import InputError

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "status": ("status.json", describe),
    "report": ("result.json", write_report),
    "comparison": ("compare.json", read_comparison),
    "frames": ("frames.json", load_frames),
    "generator": ("generator.json", _load_generator),
    "learned CV": ("cv.json", TorchCV.load),
    "set aside": ("window-1-seed-1.json", lambda folder: load_failed(folder / "window-1-seed-1.json")),
    "system": ("system.toml", load_system),
    "parsl": ("parsl.toml", lambda folder: load_parsl_options(folder / "parsl.toml")),
}
JUNK: dict[str, Callable[[Path], Any]] = {
    "nested": lambda path: path.write_text("[" * 100_000),
    "nested after a key": lambda path: path.write_text("a = " + "[" * 100_000),
    "large": lambda path: path.write_bytes(b"") or os.truncate(path, MOST_JSON + 1),
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("reader", READERS)
def test_small_files_are_read_within_bounds(reader: str, junk: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    if reader == "generator":
        (tmp_path / "generator.safetensors").write_bytes(b"")
    JUNK[junk](tmp_path / name)
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("read", [read_json, read_toml, open_table, read_arrays, lambda path: read_bytes(path, 9)])
def test_a_pipe_is_not_waited_for(read: Callable[[Path], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ValueError, match="x is no plain file"):
        read(tmp_path / "x")


def test_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"123456789")
    assert read_bytes(path, 9) == b"123456789"
    with pytest.raises(ValueError, match="x has 9 bytes, and may have 8"):
        read_bytes(path, 8)


@pytest.mark.parametrize(
    "key",
    ["a" + ".a" * 1000, "a" + " . a" * 1000, '"a b"' + '."a b"' * 1000, '"\\""' + '."\\""' * 1000, "[a" + ".a" * 99],
)
def test_keys_of_many_parts(key: str, tmp_path: Path) -> None:
    """tomllib takes minutes for one that fills the size allowed."""
    path = tmp_path / "x.toml"
    path.write_text(f"{key} = 1")
    with pytest.raises(ValueError, match="a key has too many parts"):
        read_toml(path)


def test_a_long_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    values = [0.5 + k for k in range(MOST_TOML // 20)]
    path.write_text(f'[a.b]\nc = {values}\nd = "e.f.g, h.i.j and k.l.m: o.p.q"\n')
    assert read_toml(path)["a"]["b"]["c"] == values


# arrays


def npz(path: Path, header: dict[str, Any], data: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive of one array with any header."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", content.getvalue() + data)
    return path


def header(shape: tuple[int, ...], descr: str = "<f8") -> dict[str, Any]:
    return {"descr": descr, "fortran_order": False, "shape": shape}


def test_arrays_come_back(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    written = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(["c", "de"]), "c": np.zeros((0, 4)), "d": np.array(3)}
    for save in (np.savez, np.savez_compressed):
        save(path, **written)
        found = read_arrays(path)
        assert list(found) == list(written)
        assert all(np.array_equal(found[name], array) for name, array in written.items())


@pytest.mark.parametrize("shape", [(10**9,), (2, 10**15), (9,), (7,), (10**30,)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_asks_for_another_length(shape: tuple[int, ...], compression: int, tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", header(shape), bytes(64), compression)
    with pytest.raises(ValueError, match=r"a\.npy is not as long as its header says"):
        read_arrays(path)


def test_an_archive_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_UNPACKED", 1 << 20)
    path = npz(tmp_path / "x.npz", header((1 << 18,)), bytes(1 << 21), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="would take 2,097,"):
        read_arrays(path)


def test_objects_are_no_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="is no array of numbers"):
        read_arrays(tmp_path / "x.npz")


def test_a_record_whose_digest_fits_and_which_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write a record can write its digest."""
    path = tmp_path / "x.unit"
    for body in (b"", b"1234567", b"\xff" * 8, (8).to_bytes(8, "little") + b"[" * 8):
        monkeypatch.setattr("openmm_sgm.records.save_tensors", lambda *_, body=body: body)
        write_record(path, {}, None)
        with pytest.raises(RecordError, match=r"x\.unit holds no record"):
            read_record(path)


# numbers


NUMBERS = {
    "a low temperature": ("temperature_k = 300.0", "temperature_k = 1e-300", "temperature_k must be between 0.001 and"),
    "a high temperature": ("temperature_k = 300.0", "temperature_k = 1e300", "temperature_k must be between 0.001 and"),
    "a short time step": ("time_step_fs = 1.0", "time_step_fs = 1e-300", "time_step_fs must be between"),
    "a long time step": ("time_step_fs = 1.0", "time_step_fs = 1e300", "time_step_fs must be between"),
    "little friction": ("friction_per_ps = 10.0", "friction_per_ps = 1e-300", "friction_per_ps must be between"),
    "much friction": ("friction_per_ps = 10.0", "friction_per_ps = 1e300", "friction_per_ps must be between"),
    "a wide range": ("max = 0.3", "max = 1e300", "its range must lie within"),
    "a wide range on both sides": (
        "min = 0.16\nmax = 0.3",
        "min = -1.7e308\nmax = 1.7e308",
        "its range must lie within",
    ),
    "a narrow range": ("min = 0.16\nmax = 0.3", "min = 0.0\nmax = 1e-300", "its range must lie within"),
    "a weak umbrella": ("windows = 7", "force_constant = 1e-300", "the force constant must be between"),
    "a strong umbrella": ("windows = 7", "force_constant = 1e300", "the force constant must be between"),
    "bins by the million": ("bins = 14", "bins = 1000000", "a CV has at most 10,000 bins, got 1000000"),
    "windows by the million": ("windows = 7", "windows = 1000000", "windows must be 10,000 or fewer"),
    "windows of two CVs": (
        "windows = 7",
        'windows = 1000\n[[cv]]\nname = "s"\nkind = "distance"\natoms = [1, 3]\nmin = 0.16\nmax = 0.3\nwindows = 1000',
        "a grid has at most 100,000 windows, got 1000 x 1000",
    ),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_have_bounds(case: str, tmp_path: Path) -> None:
    folder = write_system(tmp_path / "system")
    old, new, message = NUMBERS[case]
    text = (folder / "system.toml").read_text()
    assert old in text
    (folder / "system.toml").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        load_system(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_large_structure_is_refused(tmp_path: Path) -> None:
    folder = write_system(tmp_path / "system")
    os.truncate(folder / "topology.pdb", 1 << 36)
    with pytest.raises(InputError, match=r"topology\.pdb has 68,719,476,736 bytes"):
        load_system(folder)


# the same bytes at any time


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set the clock on the wall, by its zone: the two used are 24 hours apart, and libraries in C see it as well."""

    def set_zone(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


def trajectory(folder: Path) -> mdtraj.Trajectory:
    topology = mdtraj.load(write_system(folder / "system") / "topology.pdb").topology
    return mdtraj.Trajectory(np.random.default_rng(0).random((5, 4, 3)), topology)


def test_a_trajectory_holds_no_time(tmp_path: Path, at: Callable[[str], None]) -> None:
    frames, written = trajectory(tmp_path), []
    for zone in ("AAA-12", "BBB+12"):
        at(zone)
        frames.save_dcd(str(tmp_path / "theirs.dcd"))
        write_dcd(tmp_path / "samples.dcd", frames)
        written.append([(tmp_path / name).read_bytes() for name in ("samples.dcd", "theirs.dcd")])
    (ours, theirs), (ours_later, theirs_later) = written
    assert ours == ours_later
    assert theirs != theirs_later, "this mdtraj writes no time, and the test sees nothing"
    assert ours[:100] + ours[260:] == theirs[:100] + theirs[260:], "nothing but the titles is changed"
    again = [mdtraj.load(tmp_path / name, top=frames.topology) for name in ("samples.dcd", "theirs.dcd")]
    np.testing.assert_array_equal(again[0].xyz, again[1].xyz)
    np.testing.assert_allclose(again[0].xyz, frames.xyz, atol=1e-6)
    assert len(app.PDBFile(str(tmp_path / "system" / "topology.pdb")).getPositions()) == 4


def test_a_structure_holds_no_time(tmp_path: Path, at: Callable[[str], None]) -> None:
    molecule = load_system(write_system(tmp_path / "system"))
    positions, written = molecule.positions * unit.nanometer, []
    for zone in ("AAA-12", "BBB+12"):
        at(zone)
        text = io.StringIO()
        app.PDBFile.writeFile(molecule.topology, positions, text, keepIds=True)
        write_pdb(tmp_path / "x.pdb", molecule.topology, positions)
        written.append(((tmp_path / "x.pdb").read_text(), text.getvalue()))
    assert written[0][0] == written[1][0]
    assert written[0][1] != written[1][1], "this OpenMM writes no time, and the test sees nothing"
    again = app.PDBFile(str(tmp_path / "x.pdb"))
    np.testing.assert_allclose(
        again.getPositions(asNumpy=True).value_in_unit(unit.nanometer), molecule.positions, atol=1e-4
    )
    assert [len(list(t.bonds())) for t in (again.topology, molecule.topology)] == [3, 3]


def test_status_steers_no_terminal(tmp_path: Path) -> None:
    content = {
        "state": "fin\x1b]0;title\x07ished",
        "force_evaluations": 1,
        "budget": 1,
        "history": [],
        "command": "openmm-sgm run\x1b[2J\nopenmm-sgm status ok",
        "warnings": ["\x9b31m"],
    }
    (tmp_path / "status.json").write_text(json.dumps(content))
    lines = describe(tmp_path)
    assert all(line.isprintable() for line in lines), lines
