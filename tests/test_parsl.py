"""Parsl's workers give the same run as this process, and one that is killed costs its own unit; files are checked."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_cli import BUDGET, quick, write_system  # noqa: F401
from test_isolation import small_sampler
from test_simulate import assert_same, long_segments, oscillator  # noqa: F401

from openmm_sgm.cli import main
from openmm_sgm.executors import SerialExecutor, UnitCounts, run_safely
from openmm_sgm.parsl_pool import ParslOptions, ParslPool, _parsl_config, load_parsl_options
from openmm_sgm.simulate import MDSettings, run_segments
from openmm_sgm.units import InputError, SamplingError

EXAMPLES = Path(__file__).parents[1] / "examples" / "executors"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParslPool]:
    """Two workers on this machine."""
    pytest.importorskip("parsl", reason="Parsl is not installed: pip install 'openmm-sgm[parsl]'")
    with ParslPool(ParslOptions(max_workers_per_node=2, cores_per_worker=0.5), tmp_path_factory.mktemp("parsl")) as it:
        yield it


@pytest.mark.slow
def test_a_run_on_parsl_is_the_run_in_this_process(pool: ParslPool) -> None:
    alone, shared = small_sampler(workers=0), small_sampler(executor=pool, workers=2)
    for sampler in (alone, shared):
        sampler.run(force_evaluations=15_000)
    np.testing.assert_array_equal(alone.surface().free_energy, shared.surface().free_energy)
    assert shared.campaign is not None
    assert shared.campaign.cost.units_retried == shared.campaign.cost.units_set_aside == 0


@pytest.mark.slow
def test_a_killed_worker_costs_parsl_one_unit(pool: ParslPool, oscillator: MDSettings) -> None:  # noqa: F811
    segments, counts = long_segments(4), UnitCounts()
    expected = run_segments(oscillator, segments, SerialExecutor(), 1)
    run_segments(oscillator, long_segments(2), pool, 2)  # both workers have started
    threading.Timer(0.3, os.kill, (pool.submit(os.getpid).result(), signal.SIGKILL)).start()
    results = run_segments(oscillator, segments, pool, 4, counts=counts)
    assert (counts.run, counts.retried, counts.set_aside) == (4, 1, 0)
    for result, wanted in zip(results, expected, strict=True):
        assert_same(replace(result, force_evaluations=wanted.force_evaluations), wanted)


@pytest.mark.slow
def test_a_hung_call_ends_its_worker_and_not_the_others(pool: ParslPool) -> None:
    answers = run_safely(
        pool, time.sleep, [0.01, 10**6, 0.02], give_up=lambda unit, reason: reason, seconds=lambda unit: 2.0
    )
    assert [answer[0] for answer in (answers[0], answers[2])] == [[None], [None]]
    assert "WorkerLost" in answers[1][0][0]


def test_a_slurm_job_asks_for_what_the_file_says(tmp_path: Path) -> None:
    pytest.importorskip("parsl", reason="Parsl is not installed: pip install 'openmm-sgm[parsl]'")
    (executor,) = _parsl_config(load_parsl_options(EXAMPLES / "slurm_gpus.toml"), tmp_path).executors
    provider = executor.provider
    for line in ("--exclusive", "--partition=gpu", "--account=my_project"):
        assert f"#SBATCH {line}\n" in provider.scheduler_options
    assert (provider.nodes_per_block, provider.walltime, provider.gpus_per_node) == (2, "12:00:00", 4)
    assert (provider.init_blocks, provider.min_blocks, provider.max_blocks) == (1, 1, 1)
    assert "module load cuda" in provider.worker_init
    assert "OMP_NUM_THREADS=1" in provider.worker_init
    assert (executor.max_workers_per_node, executor.available_accelerators) == (4, ["0", "1", "2", "3"])


@pytest.mark.parametrize(("name", "workers"), [("local", 4), ("workstation_gpus", 2), ("slurm_gpus", 8)])
def test_the_examples_are_good(name: str, workers: int) -> None:
    assert load_parsl_options(EXAMPLES / f"{name}.toml").workers == workers


def test_no_more_workers_than_devices() -> None:
    assert ParslOptions(max_workers_per_node=8, available_accelerators=["0", "3"]).workers == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_workers_per_node = 2\nworker = 3", "worker: Extra inputs are not permitted"),
        ("provider = 'local'", "max_workers_per_node: Field required"),
        ("max_workers_per_node = 0", "greater than or equal to 1"),
        ("max_workers_per_node = '2'", "max_workers_per_node: Input should be a valid integer"),
        ("max_workers_per_node = 2\nprovider = 'pbs'", "'local' or 'slurm'"),
        ("max_workers_per_node = 2\npartition = 'gpu'", "partition is for provider = 'slurm'"),
        ("max_workers_per_node = 2\nnodes = 2", "nodes and blocks is for provider = 'slurm'"),
        ("max_workers_per_node = 2\nprovider = 'slurm'", "walltime is needed"),
        ("max_workers_per_node = 2\nprovider = 'slurm'\nwalltime = 'a day'", "walltime: String should match"),
        ("max_workers_per_node: 2", "is not a TOML file"),
    ],
)
def test_files_with_mistakes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "workers.toml"
    path.write_text(text)
    with pytest.raises(InputError) as refusal:
        load_parsl_options(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_without_parsl_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parsl", None)
    with pytest.raises(InputError, match=r"pip install 'openmm-sgm\[parsl\]'"):
        ParslPool(ParslOptions(max_workers_per_node=1), tmp_path)


@pytest.mark.slow
def test_nodes_that_cannot_start_end_the_run_with_a_reason(tmp_path: Path) -> None:
    pytest.importorskip("parsl", reason="Parsl is not installed: pip install 'openmm-sgm[parsl]'")
    options = ParslOptions(max_workers_per_node=1, worker_init="exit 3")
    with (
        ParslPool(options, tmp_path) as broken,
        pytest.raises(SamplingError, match=r"takes no more work .*Parsl's jobs failed"),
    ):
        run_safely(broken, abs, [-1, 2], give_up=lambda unit, reason: unit)


@pytest.mark.slow
def test_the_command_line_runs_on_parsl(
    tmp_path: Path,
    quick: None,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("parsl", reason="Parsl is not installed: pip install 'openmm-sgm[parsl]'")
    system, output, config = write_system(tmp_path / "system"), tmp_path / "out", tmp_path / "workers.toml"
    config.write_text("max_workers_per_node = 2\ncores_per_worker = 0.5\n")
    arguments = ["run", str(system), "--output", str(output), "--force-evaluations", str(BUDGET)]
    assert main([*arguments, "--executor", "parsl", "--executor-config", str(config)]) == 0
    assert json.loads((output / "result.json").read_text())["force_evaluations"]["total"] <= BUDGET
    assert "2 workers on Reference" in capfd.readouterr().err
    assert (output / "parsl").is_dir()
