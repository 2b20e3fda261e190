"""Where work runs: anything that obeys `concurrent.futures.Executor`, by default one process a core.

Processes are spawned, never forked, because a fork copies OpenMM's and torch's threads and locks in whatever state
they are in. Python's own spawn imports the user's script again in every worker, which is why scripts need the guard
``if __name__ == "__main__":``. Here workers are started without the script: what they run lives in this package. So
scripts without the guard work too; with another spawning executor of your own the guard is still needed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from typing import Any, TypeVar

import threadpoolctl

from .units import InputError

__all__ = ["SerialExecutor", "WorkerPool", "make_executor", "one_thread", "run_units"]

T = TypeVar("T")
R = TypeVar("R")

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENMM_CPU_THREADS"), "1")
_START_LOCK = threading.Lock()


def make_executor(workers: int) -> Executor:
    """Return a pool of `workers` single-threaded processes, or with 0 an executor that runs in this process."""
    if workers < 0:
        raise ValueError(f"workers must be 0 (run in this process) or more, got {workers}")
    return WorkerPool(workers) if workers else SerialExecutor()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch and BLAS use one thread in this process; afterwards as many as before.

    The matrices here are small: a second thread saves a third of the time at best, and when another process is busy
    the two wait for each other and cost many times more (measured).
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpoolctl.threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


class SerialExecutor(Executor):
    """Runs each call when it is submitted, in this process: for tests, debugging and tiny runs."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        future: Future[R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class WorkerPool(Executor):
    """Spawned processes with one thread each, replaced when one of them dies.

    A worker that dies (killed for memory, say) fails every call in flight with `BrokenExecutor`, as in any
    `ProcessPoolExecutor`; the next `submit` starts new workers. Workers end when this process does, however it ends.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"), initializer=_prepare_worker)

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        with _worker_start():
            try:
                return self._pool.submit(fn, *args, **kwargs)
            except BrokenExecutor:
                self._pool.shutdown(wait=False)
                self._pool = self._new_pool()
                return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def run_units(
    executor: Executor,
    function: Callable[[T], R],
    units: Sequence[T],
    on_error: Callable[[T, Exception], R] | None = None,
) -> list[R]:
    """Return `function(unit)` for every unit, in order.

    A unit that raises, or whose worker dies, gives `on_error(unit, error)`; without `on_error` the first error is
    raised and units not yet started are cancelled.
    """
    if function.__module__ == "__main__" and not isinstance(executor, SerialExecutor):
        raise InputError(
            f"{function.__qualname__} is defined in the script itself, which workers do not load: "
            "move it to a module, or use workers=0."
        )
    futures: list[Future[R]] = []
    try:
        for unit in units:
            futures.append(_submit(executor, function, unit))
        return [_result(future, unit, on_error) for future, unit in zip(futures, units, strict=True)]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _submit(executor: Executor, function: Callable[[T], R], unit: T) -> Future[R]:
    try:
        return executor.submit(function, unit)
    except BrokenExecutor as error:  # an executor that refuses work fails this unit, like a worker that dies on it
        future: Future[R] = Future()
        future.set_exception(error)
        return future


def _result(future: Future[R], unit: T, on_error: Callable[[T, Exception], R] | None) -> R:
    try:
        return future.result()
    except Exception as error:
        if on_error is None:
            raise
        return on_error(unit, error)


@contextlib.contextmanager
def _worker_start() -> Iterator[None]:
    """Within, a spawned process gets one thread and does not import the user's script; afterwards all is as before.

    Thread counts must stand in the environment before the process starts: libraries read them when they are loaded.
    Spawn finds the script by `__main__`'s `__spec__` and `__file__` (`multiprocessing.spawn.get_preparation_data`).
    """
    main = vars(sys.modules["__main__"])
    with _START_LOCK:
        identity: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
        environment = {name: os.environ.get(name) for name in _ONE_THREAD}
        try:
            main["__spec__"] = None
            main.pop("__file__", None)
            os.environ.update(_ONE_THREAD)
            yield
        finally:
            main.update(identity)
            for name, value in environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _prepare_worker() -> None:
    """Leave interrupts to the parent, end with it, and hold torch to one thread if it is loaded already."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed parent cannot tell its pool to stop, and the workers would wait for ever
