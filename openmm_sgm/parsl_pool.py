"""Workers on one machine or many nodes by Parsl (Babuji et al., HPDC 2019), described in a TOML file.

Parsl is an optional extra, ``pip install openmm-sgm[parsl]``. Its futures are those of `concurrent.futures`, its
`ParslPoolExecutor` is an `Executor`, and a worker that dies fails the one call that it had.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .files import read_toml
from .units import InputError, one_line
from .workers import Limited

__all__ = ["ParslOptions", "ParslPool", "load_parsl_options"]

R = TypeVar("R")

HEARTBEAT_SECONDS = 5
"""How often a node looks for dead workers; Parsl's own 30 s would leave a call waiting as long."""
_ONE_THREAD = "export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OPENMM_CPU_THREADS=1"
_PROGRAMS = "parsl.executors.high_throughput"
_OF_SLURM = ("partition", "account", "qos", "constraint", "walltime", "gpus_per_node", "scheduler_options")


class ParslOptions(BaseModel):
    """What a file for ``--executor-config`` says: workers, and where they run.

    Attributes
    ----------
    provider : "local", or "slurm", where blocks of nodes are asked of the scheduler with `sbatch`
    max_workers_per_node : processes on each node; with accelerators no more than there are of these
    available_accelerators : number or names of the devices on a node, one for each worker (`CUDA_VISIBLE_DEVICES`)
    cores_per_worker : a node gets no more workers than its cores allow
    nodes, blocks : nodes in each job, and jobs
    partition, account, qos, constraint, walltime, gpus_per_node : of the Slurm job
    scheduler_options : more lines for its script, such as "#SBATCH --gres=gpu:a100:4"
    exclusive : ask Slurm for whole nodes
    worker_init : shell lines to run on each node before workers start, such as "module load cuda"; they are executed as
        they stand, as the job script is
    address : of this machine as the nodes see it, where Parsl's search for it fails
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    provider: Literal["local", "slurm"] = "local"
    max_workers_per_node: int = Field(ge=1)
    available_accelerators: int | list[str] = 0
    cores_per_worker: float = Field(default=1.0, gt=0)
    nodes: int = Field(default=1, ge=1)
    blocks: int = Field(default=1, ge=1)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    walltime: str | None = Field(default=None, pattern=r"^(\d+-)?\d{1,3}:\d{2}:\d{2}$")
    gpus_per_node: int | None = Field(default=None, ge=1)
    scheduler_options: str = ""
    exclusive: bool | None = None
    worker_init: str = ""
    address: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ParslOptions:
        given = [name for name in (*_OF_SLURM, "exclusive") if getattr(self, name) not in (None, "")]
        if self.provider == "local" and (given or self.nodes > 1 or self.blocks > 1):
            raise ValueError(f"{', '.join(given) or 'nodes and blocks'} is for provider = 'slurm'")
        if self.provider == "slurm" and self.walltime is None:
            raise ValueError("walltime is needed with provider = 'slurm', such as '12:00:00'")
        return self

    @property
    def workers_per_node(self) -> int:
        """Workers on each node."""
        devices = self.available_accelerators
        count = devices if isinstance(devices, int) else len(devices)
        return min(self.max_workers_per_node, count) if count else self.max_workers_per_node

    @property
    def workers(self) -> int:
        """Workers on all nodes."""
        return self.workers_per_node * self.nodes * self.blocks


def load_parsl_options(path: Path) -> ParslOptions:
    """Read `ParslOptions` from a TOML file; nothing in it is executed here.

    Raises
    ------
    InputError
        when it cannot be read, or has keys or values that it should not have.
    """
    try:
        return ParslOptions(**read_toml(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {place + ': ' if place else ''}{first['msg']}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a TOML file: {one_line(error)}") from None


class ParslPool(Executor):
    """A `ParslPoolExecutor` of one `HighThroughputExecutor`, with time limits that the workers keep themselves.

    It starts when the first call is submitted.

    A worker in which a `Limited` call takes too long ends itself, from a thread that does not need Python's lock
    (`faulthandler.dump_traceback_later`); Parsl then fails that call and starts another worker. It cannot help where
    the whole process is stopped.

    Parameters
    ----------
    options : `ParslOptions`
    folder : for Parsl's logs and job scripts

    Raises
    ------
    InputError
        where Parsl is not installed.
    """

    def __init__(self, options: ParslOptions, folder: Path) -> None:
        if importlib.util.find_spec("parsl") is None:
            raise InputError("Parsl is not installed: pip install 'openmm-sgm[parsl]'")
        self.options = options
        self._folder = folder
        self._kernel: Any = None
        self._pool: Any = None
        self._workers: Any = None
        self._open = True

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        if not self._open:
            raise RuntimeError("cannot submit to a pool that has been shut down")
        if self._kernel is None:
            from parsl import DataFlowKernel
            from parsl.concurrent import ParslPoolExecutor

            config = _parsl_config(self.options, self._folder)
            self._kernel, self._workers = DataFlowKernel(config), config.executors[0]
            self._pool = ParslPoolExecutor(dfk=self._kernel)
        if self._workers.bad_state_is_set:  # jobs failed, at a mistake in worker_init, say
            raise BrokenExecutor(f"Parsl's jobs failed, see {self._folder}: {self._workers.executor_exception}")
        future: Future[R]
        if isinstance(fn, Limited):
            future = self._pool.submit(_run_limited, fn.function, fn.seconds, *args, **kwargs)
        else:
            future = self._pool.submit(fn, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._open = False
        if self._kernel is not None:
            if wait and not cancel_futures:
                self._kernel.wait_for_current_tasks()
            self._kernel.cleanup()
            self._kernel = self._pool = None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.shutdown(wait=kind is None)  # after an error nobody waits for what is still running


def _run_limited(function: Callable[..., R], seconds: float, /, *args: Any) -> R:
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            return function(*args)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _parsl_config(options: ParslOptions, folder: Path) -> Any:
    from parsl import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
    from parsl.launchers import SimpleLauncher, SrunLauncher
    from parsl.providers import LocalProvider, SlurmProvider

    worker_init = "\n".join(filter(None, [_ONE_THREAD, options.worker_init]))
    blocks = {"init_blocks": options.blocks, "min_blocks": options.blocks, "max_blocks": options.blocks}
    if options.provider == "local":
        provider = LocalProvider(launcher=SimpleLauncher(), worker_init=worker_init, **blocks)
    else:
        slurm = {name: getattr(options, name) for name in (*_OF_SLURM, "exclusive") if getattr(options, name)}
        provider = SlurmProvider(
            nodes_per_block=options.nodes,
            launcher=SrunLauncher(),  # one manager on each node, which starts that node's workers
            worker_init=worker_init,
            **blocks,
            **({"exclusive": False} | slurm),
        )
    # Parsl looks for its programs on the PATH, where they are not if the environment has not been activated
    run = f"{shlex.quote(sys.executable)} -m {_PROGRAMS}"
    local = {"launch_cmd": DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", f"{run}.process_worker_pool", 1)}
    executor = HighThroughputExecutor(
        label="openmm_sgm",
        provider=provider,
        max_workers_per_node=options.workers_per_node,
        available_accelerators=options.available_accelerators or (),
        cores_per_worker=options.cores_per_worker,
        heartbeat_period=HEARTBEAT_SECONDS,
        interchange_launch_cmd=[sys.executable, "-m", f"{_PROGRAMS}.interchange"],
        **(local if options.provider == "local" else {}),
        address=options.address,
    )
    return Config(executors=[executor], strategy="simple", run_dir=str(folder), initialize_logging=False)
