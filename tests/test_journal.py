"""Work that has been done is found again, whole or not at all; a training goes on bit for bit."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import quick_options, run_arguments, write_system

from openmm_sgm.executors import SerialExecutor, run_units
from openmm_sgm.generator import Samples
from openmm_sgm.journal import Journal, JournalExecutor
from openmm_sgm.records import RecordError, digest, read_record, write_record
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
        [
            SegmentResult(
                7, np.ones((1, 2, 3)), np.ones(1), np.ones((1, 2, 3)), np.ones((2, 3)), None, 12, "blew up", 1
            )
        ],
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

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr("openmm_sgm.campaign.train", stop)
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
