"""Files that are cut, spoilt or made up: each is read as it is or refused in one sentence, and nothing is overwritten.

More than a thousand files are generated, from fixed seeds; the cases by hand are those that generators do not think of.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import TOML, edit, finished_run, one_sentence, snapshot, write_system
from test_runfolder import new_sampler

from openmm_sgm.cli import _load_generator, main
from openmm_sgm.inject import Ledger
from openmm_sgm.journal import Journal
from openmm_sgm.records import digest
from openmm_sgm.reporter import load_frames
from openmm_sgm.runfolder import DAMAGE, load_state
from openmm_sgm.status import describe, read_status
from openmm_sgm.system_file import load_system
from openmm_sgm.units import InputError

hypothesis = pytest.importorskip("hypothesis", reason="pip install -e '.[dev]' has it")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

Finished = Any


def cases(count: int) -> Callable[[Any], Any]:
    """Return a decorator that runs a test on `count` generated cases, the same ones every time."""
    checks = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=checks, phases=PHASES
    )


PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
SPOILS = ("flip", "cut", "zero", "double", "junk", "number")


@st.composite
def spoils(draw: st.DrawFn) -> tuple[str, int]:
    """A way to spoil a file, and the seed of where."""
    return draw(st.sampled_from(SPOILS)), draw(st.integers(0, 2**32 - 1))


def spoilt(content: bytes, how: tuple[str, int]) -> bytes:
    """Return the content spoilt: bits flipped, cut, zeroed or doubled in part, junk put in, or a number replaced."""
    kind, seed = how
    rng = random.Random(seed)
    data = bytearray(content)
    start, length = rng.randrange(len(data)), rng.choice((1, 2, 8, 64))
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 2, 5))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[start:]
    elif kind == "zero":
        data[start : start + length] = bytes(len(data[start : start + length]))
    elif kind == "double":
        data[start:start] = data[start : start + length]
    elif kind == "junk":
        data[start:start] = rng.randbytes(length)
    else:
        digits = [k for k, byte in enumerate(data) if chr(byte).isdigit()]
        if digits:
            k = rng.choice(digits)
            data[k : k + 1] = rng.choice((b"-1", b"NaN", b"1e400", b"99999999999999999999", b"null", b'"x"', b"[]"))
    return bytes(data)


def refused_or_read(read: Callable[[], Any]) -> bool:
    """Return whether the file could be read; anything but a result or one sentence raises."""
    try:
        read()
    except InputError as error:
        message = str(error)
        assert message
        assert len(message.splitlines()) == 1
        assert "Traceback" not in message
        return False
    return True


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_system(tmp_path_factory.mktemp("hostile_system") / "system")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a `FrameReporter` writes it."""
    from openmm import app, openmm, unit

    import openmm_sgm as sgm

    base = tmp_path_factory.mktemp("hostile_frames")
    molecule = load_system(write_system(base / "system"))
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.001)
    reference = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, molecule.system, integrator, reference)
    simulation.context.setPositions(molecule.positions * unit.nanometer)
    simulation.reporters.append(sgm.FrameReporter(base / "frames", 2, molecule.cvs))
    simulation.step(20)
    simulation.reporters[-1].close()
    return base / "frames"


def spoil_one(source: Path, target: Path, name: str, how: tuple[str, int]) -> dict[str, bytes]:
    """Copy a folder, spoil one of its files, and return what the copy holds."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    (target / name).write_bytes(spoilt((target / name).read_bytes(), how))
    found = snapshot(target)
    assert isinstance(found, dict)
    return found


@cases(300)
@given(name=st.sampled_from(("system.toml", "system.toml", "system.xml", "topology.pdb")), how=spoils())
def test_system_folder(name: str, how: tuple[str, int], system: Path, tmp_path: Path) -> None:
    before = spoil_one(system, tmp_path / "copy", name, how)
    refused_or_read(lambda: load_system(tmp_path / "copy"))
    assert snapshot(tmp_path / "copy") == before


@cases(200)
@given(which=st.integers(0, 100), how=spoils())
def test_recorded_frames(which: int, how: tuple[str, int], recorded: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in recorded.iterdir())
    before = spoil_one(recorded, tmp_path / "copy", names[which % len(names)], how)
    refused_or_read(lambda: load_frames(tmp_path / "copy"))
    assert snapshot(tmp_path / "copy") == before


@cases(200)
@given(name=st.sampled_from(("generator.json", "generator.safetensors")), how=spoils())
def test_generator_folder(name: str, how: tuple[str, int], finished: Finished, tmp_path: Path) -> None:
    before = spoil_one(finished.folder / "generator", tmp_path / "copy", name, how)
    refused_or_read(lambda: _load_generator(tmp_path / "copy"))
    assert snapshot(tmp_path / "copy") == before


@cases(150)
@given(which=st.integers(0, 100), how=spoils())
def test_state(which: int, how: tuple[str, int], finished: Finished, tmp_path: Path) -> None:
    """A state that is not what was written is never taken over."""
    source = finished.folder / "state"
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    name = names[which % len(names)]
    before = spoil_one(source, tmp_path / "run" / "state", name, how)
    sampler = SAMPLERS.setdefault(str(finished.system), new_sampler(finished.system))
    read = refused_or_read(lambda: load_state(tmp_path / "run", sampler))
    assert not read or json_equal(before[name], (source / name).read_bytes(), name)
    assert snapshot(tmp_path / "run" / "state") == before


SAMPLERS: dict[str, Any] = {}


def json_equal(a: bytes, b: bytes, name: str) -> bool:
    """Return whether two contents mean the same: spaces in JSON do not matter."""
    return a == b or (name.endswith(".json") and json.loads(a) == json.loads(b))


@cases(150)
@given(how=spoils())
def test_status(how: tuple[str, int], finished: Finished, tmp_path: Path) -> None:
    content = spoilt((finished.folder / "status.json").read_bytes(), how)
    (tmp_path / "status.json").write_bytes(content)
    refused_or_read(lambda: describe(tmp_path))
    assert (tmp_path / "status.json").read_bytes() == content


@cases(150)
@given(how=spoils())
def test_ledger(how: tuple[str, int], finished: Finished, tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    path.write_bytes(spoilt((finished.folder / "ledger.csv").read_bytes(), how))
    try:
        Ledger.read(path, ["r"])
    except DAMAGE:
        return


@cases(150)
@given(how=spoils())
def test_journal(how: tuple[str, int], tmp_path: Path) -> None:
    """A damaged entry is computed again; it is never taken for a result."""
    journal = Journal(tmp_path / "journal")
    value = (np.arange(5.0), [1, None, "x"])
    journal.keep("key", value)
    path = tmp_path / "journal" / "key.unit"
    whole = path.read_bytes()
    content = spoilt(whole, how)
    path.write_bytes(content)
    there, found = journal.find("key")
    assert there == (content == whole)
    assert not there or repr(found) == repr(value)


# by hand

ROWS = "[[cv]]"
BAD_TOML: dict[str, tuple[str, str]] = {
    "topology outside": ('"topology.pdb"', '"../system/topology.pdb"'),
    "topology absolute": ('"topology.pdb"', '"/etc/passwd"'),
    "topology a folder": ('"topology.pdb"', '"."'),
    "topology empty": ('"topology.pdb"', '""'),
    "topology with a zero byte": ('"topology.pdb"', '"topology\\u0000.pdb"'),
    "topology of another kind": ('"topology.pdb"', '"system.xml"'),
    "topology very long": ('"topology.pdb"', '"' + 5000 * "a" + '"'),
    "system outside": ('"system.xml"', '"../../x.xml"'),
    "system with a zero byte": ('"system.xml"', '"a\\u0000"'),
    "system the topology": ('"system.xml"', '"topology.pdb"'),
    "force field outside": ('system = "system.xml"', 'force_field = ["../a.xml"]'),
    "force field absolute": ('system = "system.xml"', 'force_field = ["/etc/passwd"]'),
    "temperature no number": ("temperature_k = 300.0", "temperature_k = nan"),
    "temperature infinite": ("temperature_k = 300.0", "temperature_k = inf"),
    "temperature negative": ("temperature_k = 300.0", "temperature_k = -300.0"),
    "temperature zero": ("temperature_k = 300.0", "temperature_k = 0"),
    "temperature text": ("temperature_k = 300.0", 'temperature_k = "300 K"'),
    "temperature a table": ("temperature_k = 300.0", "temperature_k = {a = 1}"),
    "minimum no number": ("min = 0.16", "min = nan"),
    "maximum infinite": ("max = 0.3", "max = inf"),
    "bins without end": ("bins = 14", "bins = 10000000000000"),
    "bins negative": ("bins = 14", "bins = -14"),
    "bins a fraction": ("bins = 14", "bins = 1.5"),
    "windows without end": ("windows = 7", "windows = 1000000000000"),
    "windows negative": ("windows = 7", "windows = -7"),
    "atoms no list": ("[0, 2]", '"0, 2"'),
    "atoms of lists": ("[0, 2]", "[[0], [2]]"),
    "atoms three": ("[0, 2]", "[0, 1, 2]"),
    "atoms none": ("[0, 2]", "[]"),
    "atoms alike": ("[0, 2]", "[2, 2]"),
    "atoms huge": ("[0, 2]", "[0, 99999999999999999999]"),
    "atoms fractions": ("[0, 2]", "[0.5, 2.5]"),
    "atoms no numbers": ("[0, 2]", "[nan, nan]"),
    "name empty": ("name = ", 'name = ""\nx = '),
    "name a number": (TOML.splitlines()[0] if TOML.splitlines()[0] else TOML.splitlines()[1], "name = 5"),
    "kind a dunder": ('"distance"', '"__class__"'),
    "an argument of Python": ("bins = 14", "bins = 14\n__init__ = 1"),
    "a CV without a name": ('name = "r"', 'name = ""'),
}


@pytest.mark.parametrize("case", BAD_TOML)
def test_bad_system_by_hand(case: str, system: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(system, folder)
    edit(folder / "system.toml", *BAD_TOML[case])
    before = snapshot(tmp_path)
    assert not refused_or_read(lambda: load_system(folder))
    assert snapshot(tmp_path) == before


def crafted_npz(path: Path, shape: str, dtype: str = "<f8") -> None:
    """Write an archive whose arrays promise more than there is, or what only a pickle could hold."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("positions", "forces", "energies", "cvs", "steps"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64)


CRAFTED: dict[str, Callable[[Path], None]] = {
    "a shape without end": partial(crafted_npz, shape="(1000000000000000,)"),
    "a negative shape": partial(crafted_npz, shape="(-5,)"),
    "a shape of many dimensions": partial(crafted_npz, shape="(" + "9," * 70 + ")"),
    "objects": partial(crafted_npz, shape="(8,)", dtype="|O"),
    "text": partial(crafted_npz, shape="(8,)", dtype="<U2"),
    "no archive": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)) and None,
    "a pickle": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.") and None,
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_frames(case: str, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    monkeypatch.chdir(tmp_path)
    for path in folder.glob("*.npz"):
        CRAFTED[case](path)
    assert not refused_or_read(lambda: load_frames(folder))
    assert not (tmp_path / "pwned").exists()


HEADERS: dict[str, Any] = {
    "steps negative": {"steps": -1},
    "atoms without end": {"n_atoms": 10**12},
    "another version": {"format_version": 99},
    "unknown kind": {"representation": "__import__"},
    "network without end": {"network": {"width": 10**9, "hidden": 10**9, "conditioning": 10**9}},
    "network negative": {"network": {"width": -1, "hidden": 1, "conditioning": 1}},
    "labels no numbers": {"label_space": {"periods": ["x"], "minimum": [0], "maximum": [1]}},
    "labels of two": {"label_space": {"periods": [None, None], "minimum": [0, 0], "maximum": [1, 1]}},
}


@pytest.mark.parametrize("case", HEADERS)
def test_crafted_generator(case: str, finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder / "generator", folder)
    path = folder / "generator.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | HEADERS[case]))
    assert not refused_or_read(lambda: _load_generator(folder))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "5", "null", "{}", '{"state": 5}', "NaN", "[" * 100_000, '{"state": "x", "history": [5]}', "\udcff"],
)
def test_status_by_hand(content: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert not refused_or_read(lambda: read_status(tmp_path))


def test_report_escapes_a_name(finished: Finished, tmp_path: Path) -> None:
    """A system's name, a failure and a warning are text: no script of theirs runs in the report."""
    from openmm_sgm.report import write_report

    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    path = folder / "result.json"
    script = "<script>alert('x')</script>"
    content = json.loads(path.read_text()) | {"system": script, "hidden_states": [script], "command": script}
    content["windows"]["set_aside"] = {script: script}
    path.write_text(json.dumps(content))
    page = write_report(folder).read_text()
    assert "&lt;script&gt;" in page
    assert script not in page  # the report's own are other ones, and the only ones that its policy lets run


EVIL = "<b id='x' onclick=alert(1)>"


def leaves(content: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value that is neither a dict nor a list, of lists those in the first two items; and to
    each key."""
    items = content.items() if isinstance(content, dict) else enumerate(content[:2])
    for key, value in items:
        yield from leaves(value, *path, key) if isinstance(value, dict | list) else [(*path, key)]


def changed(content: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy with the value at a path replaced by markup."""
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = EVIL
    return content


@pytest.mark.parametrize("name", ["result.json", "diagnostics.json"])
def test_report_escapes_every_value(
    name: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value may be text where a number belongs: the report has it as text, or is refused."""
    from openmm_sgm import report

    class Picture:
        def savefig(self, *given: Any, **options: Any) -> None:
            """Draw nothing: the pictures would take all the time."""

    for drawn in [function for function in vars(report) if function.startswith("draw_")]:
        monkeypatch.setattr(report, drawn, lambda run: Picture())
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    content = json.loads((folder / name).read_text())
    paths = list(leaves(content))
    written = 0
    for path in paths:
        (folder / name).write_text(json.dumps(changed(content, path)))
        if refused_or_read(lambda: report.write_report(folder)):
            assert "<b id" not in (folder / "report.html").read_text(), path
            written += 1
    assert len(paths) > 10
    assert written > 5


@pytest.mark.parametrize("key", ["visited", "started_from"])
def test_report_escapes_the_windows(key: str, finished: Finished, tmp_path: Path) -> None:
    from openmm_sgm.report import write_report

    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    content = json.loads((folder / "result.json").read_text())
    content["windows"][key] = EVIL if key == "visited" else {EVIL: EVIL}
    (folder / "result.json").write_text(json.dumps(content))
    page = write_report(folder).read_text()
    assert "<b id" not in page
    assert "&lt;b id" in page


FRAMES: dict[str, Any] = {
    "masses no list": {"masses_amu": 5},
    "CVs no list": {"cvs": 5},
    "CVs without names": {"cvs": [{}]},
    "a temperature in words": {"temperature_k": "warm"},
}


@pytest.mark.parametrize("case", FRAMES)
def test_crafted_header_of_frames(case: str, recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(recorded, folder)
    path = folder / "frames.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | FRAMES[case]))
    assert not refused_or_read(lambda: load_frames(folder))


@pytest.mark.parametrize("change", [{"seed": "1"}, {"workers": "x"}, {"ladder": ["hot"]}, {"ladder": 5}, {"quick": 2}])
def test_resume_with_a_crafted_status(
    change: dict[str, Any], finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    path = folder / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = snapshot(folder)
    assert main(["run", str(finished.system), "--output", str(folder), "--resume"]) == 2
    assert "status.json is damaged" in one_sentence(capsys.readouterr().err)
    assert snapshot(folder) == before


def test_a_crafted_number_of_a_state(finished: Finished, tmp_path: Path) -> None:
    """Its digest fits; the number is a part of file names."""
    state = tmp_path / "run" / "state"
    shutil.copytree(finished.folder / "state", state)
    content = json.loads((state / "state.json").read_text())
    del content["digest"]
    number = f"{content['number']}"
    content |= {"number": number}
    content["digest"] = digest(json.dumps(content, sort_keys=True))
    (state / "state.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="a state has a whole number, not"):
        load_state(tmp_path / "run", new_sampler(finished.system))
