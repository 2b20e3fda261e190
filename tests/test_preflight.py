"""Copies of a run are refused, and every worker's device and share are told, without a device in this machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openmm_sgm import platforms
from openmm_sgm.parsl_pool import ParslOptions, ParslPool
from openmm_sgm.platforms import PlatformOptions, own_device, worker_rank
from openmm_sgm.preflight import describe_executor, describe_workers, refuse_copies
from openmm_sgm.units import InputError


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_copies_are_refused(variable: str) -> None:
    with pytest.raises(InputError, match=f"has started 4 copies of this run \\({variable}\\)"):
        refuse_copies({variable: "4"})
    refuse_copies({variable: "1"})


def test_a_job_script_with_several_tasks_runs_once() -> None:
    refuse_copies({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "17"})


def test_workers_take_devices_in_turn() -> None:
    assert describe_workers("CUDA", 3, 300, n_devices=2) == [
        "worker 0 -> CUDA device 0, about 100 of 300 windows",
        "worker 1 -> CUDA device 1, about 100 of 300 windows",
        "worker 2 -> CUDA device 0, about 100 of 300 windows",
    ]
    assert describe_workers("Reference", 2, 324) == ["2 workers on Reference, about 162 of 324 windows each"]
    assert describe_workers("Reference", 0, 324) == ["this process on Reference, about 324 of 324 windows"]


def test_nodes_of_parsl_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    options = ParslOptions(
        provider="slurm", walltime="01:00:00", nodes=2, max_workers_per_node=2, available_accelerators=2
    )
    assert describe_executor(ParslPool(options, tmp_path), "CUDA", options.workers, 400) == [
        "worker 0 on each of 2 nodes -> CUDA device 0, about 100 of 400 windows",
        "worker 1 on each of 2 nodes -> CUDA device 1, about 100 of 400 windows",
    ]
    with ThreadPoolExecutor(1) as threads:
        (line,) = describe_executor(threads, "CPU", 4, 400)
    assert line == "CPU on the ThreadPoolExecutor given, work shared out for 4 workers"


def test_a_worker_knows_its_rank_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_rank({"OPENMM_SGM_WORKER": "3", "PARSL_WORKER_RANK": "1"}) == 3
    assert worker_rank({"PARSL_WORKER_RANK": "1"}) == 1
    with ThreadPoolExecutor(2) as threads:
        ranks = [threads.submit(worker_rank, {}).result() for _ in range(4)]
    assert len(set(ranks)) <= 2
    monkeypatch.setattr(platforms, "_find_devices", lambda platform: [{"DeviceIndex": str(k)} for k in range(2)])
    monkeypatch.setenv("OPENMM_SGM_WORKER", "3")
    assert own_device("CUDA") == {"DeviceIndex": "1"}
    assert own_device("CPU") == {}


def test_platform_options_become_properties() -> None:
    exact = PlatformOptions(precision="double", deterministic_forces=True)
    assert exact.properties("CUDA") == {"Precision": "double", "DeterministicForces": "true"}
    assert exact.properties("OpenCL") == {"Precision": "double"}
    assert exact.properties("CPU") == {"Threads": "1", "DeterministicForces": "true"}
    assert exact.properties("Reference") == {}
    assert PlatformOptions().properties("CUDA") == {"Precision": "mixed"}
    with pytest.raises(InputError, match="single, mixed or double, got 'half'"):
        PlatformOptions(precision="half")
    with pytest.raises(InputError, match="one of Reference, CPU, CUDA, HIP, OpenCL, got 'Abacus'"):
        PlatformOptions("Abacus")
