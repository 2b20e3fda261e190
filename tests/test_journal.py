"""Work that has been done is found again, whole or not at all; a training goes on bit for bit."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import SEED, quick_options, run_arguments, write_system

from openmm_sgm.executors import SerialExecutor, run_units
from openmm_sgm.generator import Samples
from openmm_sgm.journal import Journal, JournalExecutor
from openmm_sgm.records import RecordError, digest, read_record, write_record
from openmm_sgm.runfolder import keep
from openmm_sgm.sampler import ScoreSampler
from openmm_sgm.simulate import SegmentResult
from openmm_sgm.status import describe, holder, locked, storage_errors
from openmm_sgm.system_file import load_system
from openmm_sgm.training import Checkpoint, TrainingOptions, TrainingSet, train
from openmm_sgm.units import InputError, SamplingError

CALLS: list[Any] = []


def doubled(unit: np.ndarray) -> np.ndarray:
    CALLS.append(unit)
    return 2 * unit


def failing(unit: np.ndarray) -> np.ndarray:
    CALLS.append(unit)
    raise ValueError("no")


def strange(unit: np.ndarray) -> Any:
    CALLS.append(unit)
    return {1, 2}


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def units(n: int = 3) -> list[np.ndarray]:
    return [np.arange(4.0) + k for k in range(n)]


# units


def test_what_is_done_is_not_done_again(journal: Journal) -> None:
    first = run_units(JournalExecutor(SerialExecutor(), journal), doubled, units())
    assert len(CALLS) == 3
    again = Journal(journal.folder)
    second = run_units(JournalExecutor(SerialExecutor(), again), doubled, units(4))
    assert len(CALLS) == 4, "only the new one is run"
    assert (again.found, again.kept) == (3, 1)
    for a, b in zip(first, second, strict=False):
        np.testing.assert_array_equal(a, b)


def test_other_content_is_other_work(journal: Journal) -> None:
    """One bit, the type, the shape or the function: each has a key of its own."""
    unit = np.arange(4.0)
    near = unit.copy()
    near[3] = np.nextafter(near[3], 9)
    others = [unit, near, unit.astype(np.float32), unit.reshape(2, 2), unit.astype(np.int64)]
    assert len({digest(u) for u in others}) == len(others)
    assert len({digest(v) for v in (1, 1.0, True, "1", b"1", None, (1,), [[1]], {"1": 1})}) == 9
    assert digest(("ab", "c")) != digest(("a", "bc"))
    executor = JournalExecutor(SerialExecutor(), journal)
    run_units(executor, doubled, [unit])
    with pytest.raises(ValueError, match="no"):
        run_units(executor, failing, [unit])
    assert len(CALLS) == 2


def test_failures_and_unknown_results_are_not_kept(journal: Journal) -> None:
    executor = JournalExecutor(SerialExecutor(), journal)
    for _ in range(2):
        assert run_units(executor, failing, units(1), lambda unit, error: unit)[0] is not None
        assert run_units(executor, strange, units(1)) == [{1, 2}]
    assert len(CALLS) == 4
    assert not journal.folder.exists()


@pytest.mark.parametrize(
    "result",
    [
        Samples(np.zeros((2, 3, 3)), np.array([1.0, -np.inf]), np.array([True, False]), np.arange(2)),
        (np.zeros(0), np.full((1, 2, 3), np.nan)),
        [SegmentResult(7, np.ones((1, 2, 3)), np.ones(1), np.ones((1, 2, 3)), np.ones((2, 3)), None, 12, "blew up", 1)],
    ],
    ids=["samples", "evaluations", "segments"],
)
def test_results_come_back_as_they_were(result: Any, journal: Journal) -> None:
    journal.keep("key", result)
    there, found = journal.find("key")
    assert there
    assert type(found) is type(result)
    assert repr(found) == repr(result)
    assert digest(_as_list(found)) == digest(_as_list(result))


def _as_list(result: Any) -> Any:
    return list(result) if isinstance(result, Samples) else result


def test_every_damage_to_a_result_is_noticed(journal: Journal) -> None:
    """Each flipped bit and each cut: the result is as if it had never been there, and is computed again."""
    path = journal.folder / "key.unit"
    journal.keep("key", (np.arange(6.0), 3))
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for bit in rng.choice(8 * len(whole), 200, replace=False):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(spoilt)
        assert journal.find("key") == (False, None)
        assert not path.exists()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert not journal.find("key")[0]
    path.write_bytes(whole)
    assert journal.find("key")[0]


def test_segments_are_kept_one_by_one(tmp_path: Path) -> None:
    """A kill within a work list loses the segment that runs, not the list; the results are those without a journal."""
    from openmm_sgm.simulate import run_segments

    sampler = ScoreSampler(load_system(write_system(tmp_path / "system")), seed=1, workers=0, options=quick_options())
    campaign = sampler.new_campaign("Reference")
    n = len(campaign.grid.centers)
    start = campaign.molecule.positions
    segments = [campaign.segment(k % n, start, None, None, 0, 20, 20) for k in range(5)]
    plain = run_segments(campaign.settings, segments, SerialExecutor(), 2)
    journal = Journal(tmp_path / "journal")

    class Dies(SerialExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if journal.kept == 3:
                raise KeyboardInterrupt
            return super().submit(fn, *args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        run_segments(campaign.settings, segments, JournalExecutor(Dies(), journal), 2)
    again = Journal(journal.folder)
    results = run_segments(campaign.settings, segments, JournalExecutor(SerialExecutor(), again), 1)
    assert (again.found, again.kept) == (3, 2)
    for a, b in zip(results, plain, strict=True):
        assert digest(a) == digest(b)


def test_stop_lets_what_runs_end_and_keeps_it(journal: Journal) -> None:
    journal.folder.mkdir()
    with ThreadPoolExecutor(1) as pool:
        executor = JournalExecutor(pool, journal)

        def slow(unit: np.ndarray) -> np.ndarray:
            CALLS.append(unit)
            journal.stop()
            return unit

        with pytest.raises(KeyboardInterrupt):
            run_units(executor, slow, units(5))
    assert len(CALLS) == journal.kept == 1
    with pytest.raises(KeyboardInterrupt):
        executor.submit(doubled, units(1)[0])


def test_a_write_that_fails_is_told_and_is_no_failure_of_the_unit(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("openmm_sgm.journal.write_record", full)
    with pytest.raises(OSError, match="No space left"):
        run_units(JournalExecutor(SerialExecutor(), journal), doubled, units(), lambda unit, error: unit)
    assert len(CALLS) == 1


def test_record_is_refused_when_damaged(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_record(path, {"x": np.arange(3.0)}, {"a": [1, None]})
    arrays, content = read_record(path)
    np.testing.assert_array_equal(arrays["x"], np.arange(3.0))
    assert content == {"a": [1, None]}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordError):
        read_record(path)


# training


def some_data(tmp_path: Path) -> tuple[TrainingSet, Any]:
    sampler = ScoreSampler(load_system(write_system(tmp_path / "system")), seed=1, workers=0, options=quick_options())
    kept: list[TrainingSet] = []

    def stop(data: TrainingSet, **options: Any) -> None:
        kept.append(data)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openmm_sgm.campaign.train", stop)
        with pytest.raises(InterruptedError):
            sampler.run(6000)
    return kept[0], sampler.options


def test_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Stopped after 1, 13, 31 and 59 of 60 steps, with checks and best weights in between, the weights are the same.

    Seen to fail with the moving average, Adam's moments, the learning rate or the random state left out of the file.
    """
    data, options = some_data(tmp_path)
    same: dict[str, Any] = {
        "options": replace(options.training, steps=60, check_every=7, patience=30),
        "network_options": options.network,
        "seed": 5,
    }
    torch.set_num_threads(1)
    plain = train(data, **same)
    assert len(plain.held_out) > 3
    asked: list[int] = []

    def stopping() -> bool:
        """Asked once after every step."""
        asked.append(1)
        return len(asked) in (1, 13, 31, 59)

    folder, stops = tmp_path / "journal", 0
    while True:
        try:
            result = train(data, **same, checkpoint=Checkpoint(folder, stopping))
            break
        except KeyboardInterrupt:
            stops += 1
    assert (stops, len(asked)) == (4, plain.steps), "no step is done twice"
    assert result.steps == plain.steps
    assert result.held_out == plain.held_out
    assert result.generator.to_bytes() == plain.generator.to_bytes()
    found = train(data, **same, checkpoint=Checkpoint(folder, stopping))
    assert len(asked) == plain.steps, "a training that is done is not done again"
    assert found.generator.to_bytes() == plain.generator.to_bytes()
    (path,) = folder.glob("*.training")
    path.write_bytes(path.read_bytes()[:-9])
    anew = train(data, **same, checkpoint=Checkpoint(folder))
    assert anew.generator.to_bytes() == plain.generator.to_bytes()
    other = train(data, **{**same, "seed": 6}, checkpoint=Checkpoint(folder))
    assert other.generator.to_bytes() != plain.generator.to_bytes()


def test_options_of_training_have_a_digest() -> None:
    assert digest(TrainingOptions()) != digest(TrainingOptions(steps=1))


# lock, status, storage


def test_second_process_is_refused_and_damages_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    code = (
        "import sys; from pathlib import Path; from openmm_sgm.status import locked\nwith locked(Path(sys.argv[1])): 1"
    )
    with locked(folder):
        before = (folder / "lock").read_bytes()
        assert holder(folder) == f"process {os.getpid()} on {os.uname().nodename}"
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
        assert f"InputError: {folder} is in use by process {os.getpid()} on" in done.stderr
        assert (folder / "lock").read_bytes() == before
    assert holder(folder) is None
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_a_kill_releases_the_lock(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from openmm_sgm.status import locked\n"
    code += "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert json.loads((tmp_path / "lock").read_text())["pid"] != os.getpid()
    assert holder(tmp_path) is None
    with locked(tmp_path):
        pass


def status_file(folder: Path, **changes: Any) -> None:
    record = {"stage": "exploration", "force_evaluations": 900, "acceptance": None, "error_kj_mol": 1.5}
    content = {
        "state": "running",
        "phase": "round 1",
        "force_evaluations": 1200,
        "budget": 8000,
        "history": [record],
        "windows": 7,
        "set_aside": {"r = 0.2 nm": "blew up"},
        "warnings": [],
        "command": "openmm-sgm run a --output b",
    }
    (folder / "status.json").write_text(json.dumps(content | changes))


def test_status_tells_live_from_killed(tmp_path: Path) -> None:
    status_file(tmp_path)
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "a.unit").write_bytes(b"")
    lines = describe(tmp_path)
    assert lines[0] == "killed: 1,200 of 8,000 force evaluations"
    assert lines[1].startswith("  in round 1, 1 results since the last save, the latest ")
    assert lines[-1] == "to continue: openmm-sgm run a --output b --resume"
    assert "  7 windows, 1 set aside" in lines
    assert "    r = 0.2 nm: blew up" in lines
    with locked(tmp_path):
        lines = describe(tmp_path)
    assert lines[0] == "running: 1,200 of 8,000 force evaluations"
    assert lines[1] == f"  at work: process {os.getpid()} on {os.uname().nodename}"
    assert not any("to continue" in line for line in lines)


def test_status_loads_neither_torch_nor_the_arrays(tmp_path: Path) -> None:
    status_file(tmp_path)
    code = "import sys; from openmm_sgm.cli import main; main(sys.argv[1:])\n"
    code += "assert not {'torch', 'mdtraj', 'scipy', 'matplotlib', 'pymbar'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, "status", str(tmp_path)], check=True, capture_output=True)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EDQUOT])
def test_storage_errors_end_in_a_sentence(error: int, tmp_path: Path) -> None:
    message = r"cannot write in .*: put that right, then continue with: .* --resume$"
    with pytest.raises(SamplingError, match=message), storage_errors(tmp_path, "openmm-sgm run a --output b"):
        raise OSError(error, os.strerror(error))
    with pytest.raises(ConnectionResetError), storage_errors(tmp_path, "x"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InputError, match=r"cannot write in .*: Permission denied"), locked(tmp_path):
        pass


# the whole command

QUICK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import matplotlib.figure
import openmm_sgm.report
import openmm_sgm.options as options
from test_cli import draw_nothing, quick_options
matplotlib.figure.Figure.savefig = draw_nothing
from dataclasses import replace
options.SamplerOptions = lambda ladder: replace(quick_options(), ladder=ladder)
from openmm_sgm.cli import main
if int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
sys.exit(main(sys.argv[3:]))
"""


def command(system: Path, output: Path, *more: str, largest_file: int = 0) -> list[str]:
    arguments = [*run_arguments(system, output, *more, budget=4000), "--ladder", "400"]
    return [sys.executable, "-c", QUICK, str(Path(__file__).parent), str(largest_file), *arguments]


RESULTS = ("surface.csv", "ledger.csv", "weights.csv", "generator/generator.safetensors")


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that nothing has disturbed: its system and its folder."""
    base = tmp_path_factory.mktemp("alone")
    system = write_system(base / "system")
    subprocess.run(command(system, base / "out"), check=True, capture_output=True)
    return system, base / "out"


def test_a_finished_run_leaves_no_journal(alone: tuple[Path, Path]) -> None:
    assert not (alone[1] / "journal").exists()
    assert not list(alone[1].rglob("*.tmp"))


def test_killed_again_and_again_the_run_gives_the_same_bytes(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed (SIGKILL) in the exploration and in two rounds, the run goes on to the same results, bit for bit."""
    system, whole = alone
    folder, kills = tmp_path / "out", []
    for stage in ("exploration", "round 1", "round 3"):
        more = ["--resume"] if kills else []
        process = subprocess.Popen(command(system, folder, *more), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not _stands_in(folder, stage):
            time.sleep(0.002)
        process.kill()
        kills.append(process.wait())
        assert describe(folder)[0].startswith("killed: ")
    assert kills == [-9, -9, -9]
    last = subprocess.run(command(system, folder, "--resume"), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert results(folder) == results(whole)


def _stands_in(folder: Path, stage: str) -> bool:
    """Return whether a run is in a stage and has kept something of it."""
    try:
        status = json.loads((folder / "status.json").read_text())
        return status["phase"] == stage and len(list((folder / "journal").iterdir())) > 3
    except (OSError, ValueError):
        return False


def test_full_disk_ends_with_a_sentence_and_the_run_goes_on(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: a state's arrays are the first that do not fit."""
    system, whole = alone
    folder = tmp_path / "out"
    done = subprocess.run(command(system, folder, largest_file=60_000), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot write in" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("--resume")
    assert describe(folder)[0].startswith("failed: ")
    again = subprocess.run(command(system, folder, "--resume"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert results(folder) == results(whole)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system of its own")
def test_small_disk_fills_up_and_the_run_goes_on_after_it_grew(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """A real full disk: a tmpfs too small for the run. It ends with a sentence; made larger, the run goes on.

    A read-only mount is refused in a sentence, and nothing in the folder has changed.
    """
    system, whole = alone
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if subprocess.run(["unshare", "-m", *mount], capture_output=True, check=False).returncode:
        pytest.skip("file systems may not be mounted here")
    folder = disk / "out"
    steps = [
        shlex.join(mount),
        f"{shlex.join(command(system, folder))} 2> full; echo $? >> codes",
        f"mount -o remount,ro {disk}; ls -lR {folder} > before",
        f"{shlex.join(command(system, folder, '--resume'))} 2> read_only; echo $? >> codes",
        f"ls -lR {folder} > after",
        f"mount -o remount,rw,size=100m {disk}",
        f"{shlex.join(command(system, folder, '--resume'))} 2> larger; echo $? >> codes",
        f"cp -r {folder} out",
    ]
    subprocess.run(["unshare", "-m", "sh", "-c", "\n".join(steps)], cwd=tmp_path, check=True, capture_output=True)
    full, read_only, larger = ((tmp_path / name).read_text() for name in ("full", "read_only", "larger"))
    assert (tmp_path / "codes").read_text().split() == ["1", "2", "0"], (full, read_only, larger)
    assert "Traceback" not in full + read_only + larger
    assert "No space left on device" in full.splitlines()[-1]
    assert full.splitlines()[-1].endswith("--resume")
    assert "Read-only file system" in read_only.splitlines()[-1]
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
    assert results(tmp_path / "out") == results(whole)


def test_second_interrupt_stops_at_once_with_its_workers(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """Ctrl-C twice in a terminal, which signals the whole group: no worker is left, and the run goes on."""
    system, whole = alone
    folder = tmp_path / "out"
    process = subprocess.Popen(
        command(system, folder, "--workers", "2"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not _stands_in(folder, "round 1"):
        time.sleep(0.002)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    errors = process.communicate(timeout=60)[1]  # ends when the workers, which hold stderr as well, are gone
    assert process.returncode == 130
    assert "openmm-sgm: stopped" in errors
    assert "Traceback" not in errors
    last = subprocess.run(
        command(system, folder, "--resume", "--workers", "0"), capture_output=True, text=True, check=False
    )
    assert last.returncode == 0, last.stderr
    assert results(folder) == results(whole)


def test_first_interrupt_ends_gently_and_a_script_goes_on(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """Ctrl-C: what runs is kept, the command to go on is printed, exit code 130; `keep` goes on from it in Python."""
    system, whole = alone
    folder = tmp_path / "out"
    process = subprocess.Popen(command(system, folder), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not _stands_in(folder, "round 2"):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130
    assert "stopping after what is running; Ctrl-C again to stop at once" in errors
    assert "Traceback" not in errors
    told = next(line for line in errors.splitlines() if "to continue: " in line)
    assert told.endswith("--resume")
    assert describe(folder)[0].startswith("interrupted: ")
    options = replace(quick_options(), ladder=(400,))
    sampler = ScoreSampler(load_system(system), seed=SEED, workers=0, options=options)
    with keep(sampler, folder) as spent:
        assert 0 < spent < 4000
        with pytest.raises(InputError, match="is in use by process"), keep(sampler, folder):
            pass
        sampler.run(4000 - spent)
        assert sampler.journal is not None
        assert sampler.journal.found > 0
    assert (folder / "state").is_dir()
    assert sampler.campaign is not None
    sampler.campaign.ledger.write(tmp_path / "ledger.csv")
    assert (tmp_path / "ledger.csv").read_bytes() == (whole / "ledger.csv").read_bytes()
