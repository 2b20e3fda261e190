"""Before a run: refuse what would do the whole job several times, and tell which worker works where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor

from .parsl_pool import ParslPool
from .platforms import assign_devices
from .units import InputError

__all__ = ["describe_executor", "describe_workers", "refuse_copies"]

_TASKS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "the MPI launcher",
    "MV2_COMM_WORLD_SIZE": "the MPI launcher",
    "SLURM_STEP_NUM_TASKS": "srun",
}
"""Set in every process that the launcher has started, to their number. SLURM_NTASKS is not among them: `sbatch
--ntasks` sets it in the job script as well, which runs once."""


def refuse_copies(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to run as one of several processes that a launcher has started: each of them would do the whole job.

    Raises
    ------
    InputError
        naming the launcher, and what to do instead.
    """
    for variable, launcher in _TASKS.items():
        count = environment.get(variable, "")
        if count.isdigit() and int(count) > 1:
            raise InputError(
                f"{launcher} has started {count} copies of this run ({variable}), each of which would do the whole "
                "job: start it once, and for several nodes use --executor parsl or give an executor"
            )


def describe_executor(executor: Executor | None, platform: str, workers: int, n_windows: int) -> list[str]:
    """Return `describe_workers` for an executor; None for a pool of this machine's processes."""
    if isinstance(executor, ParslPool):
        own = executor.options
        devices = own.workers_per_node if own.available_accelerators else None
        return describe_workers(platform, own.workers_per_node, n_windows, devices, own.nodes * own.blocks)
    if executor is not None:
        return [f"{platform} on the {type(executor).__name__} given, work shared out for {max(1, workers)} workers"]
    return describe_workers(platform, workers, n_windows)


def describe_workers(
    platform: str, workers: int, n_windows: int, n_devices: int | None = None, nodes: int = 1
) -> list[str]:
    """Return lines that tell how many windows and which device each worker has; one line where there are no devices.

    Parameters
    ----------
    workers : on each node; 0 for this process alone
    n_windows : of the grid; work goes to whoever is free, so that each worker's share is about equal
    n_devices : devices that the workers choose from; None to look for them on this machine
    nodes : machines, all with so many workers and devices
    """
    share = f"about {n_windows / (max(1, workers) * nodes):.0f} of {n_windows} windows"
    where = f" on each of {nodes} nodes" if nodes > 1 else ""
    devices = assign_devices(platform, max(1, workers), n_devices)
    if not any(devices):
        who = f"{workers} workers{where}" if workers > 1 else "one worker" if workers else "this process"
        return [f"{who} on {platform}, {share}{' each' if workers > 1 else ''}"]
    return [
        f"worker {k}{where} -> {platform} device {device.get('DeviceIndex', '0')}, {share}"
        for k, device in enumerate(devices)
    ]
