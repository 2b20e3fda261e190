"""`WorkerPool`: spawned single-threaded processes; one that dies or hangs takes with it its own call alone.

In Python's `ProcessPoolExecutor` the death of one worker ends the others and fails every call in flight. Here each
worker is served by a thread of its own, which notices its death, kills it when a call exceeds its time, and starts
another in its place.

Processes are spawned, never forked, because a fork copies OpenMM's and torch's threads and locks in whatever state
they are in. Python's own spawn imports the user's script again in every worker, which is why scripts need the guard
``if __name__ == "__main__":``. Here workers are started without the script: what they run lives in this package. So
scripts without the guard work too; with another spawning executor of your own the guard is still needed.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

__all__ = ["Limited", "WorkerDied", "WorkerPool"]

from .platforms import RANK_VARIABLE

T = TypeVar("T")
R = TypeVar("R")

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENMM_CPU_THREADS"), "1")
STOP_SECONDS = 5.0
_START_LOCK = threading.Lock()


class WorkerDied(BrokenExecutor):
    """The process that ran a call ended, or was ended because it took too long; the pool has replaced it."""


class Limited(Generic[T, R]):
    """A function with the wall seconds that a call of it may take, for executors that can end a worker.

    Others call it like the function, without a limit. It has the function's name, and equals it, for executors that
    treat some functions specially.
    """

    def __init__(self, function: Callable[[T], R], seconds: float) -> None:
        functools.update_wrapper(self, function)
        self.function, self.seconds = function, seconds

    def __call__(self, unit: T) -> R:
        return self.function(unit)

    def __eq__(self, other: object) -> bool:
        return bool(self.function == (other.function if isinstance(other, Limited) else other))

    def __hash__(self) -> int:
        return hash(self.function)


class WorkerPool(Executor):
    """Spawned processes with one thread each; each is replaced when it dies, or hangs in a `Limited` call.

    The call that it had fails with `WorkerDied`; no other does. Workers start when they are first needed and end when
    this process does, however it ends.
    """

    def __init__(self, workers: int) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], bytes, float | None] | None] = queue.SimpleQueue()
        self._lock, self._open = threading.Lock(), True
        self._threads = [threading.Thread(target=self._serve, args=(rank,), daemon=True) for rank in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        future: Future[R] = Future()
        try:
            message = bytes(ForkingPickler.dumps((fn, args, kwargs)))
        except Exception as error:
            future.set_exception(error)
            return future
        with self._lock:
            if not self._open:
                raise RuntimeError("cannot submit to a pool that has been shut down")
            self._calls.put((future, message, getattr(fn, "seconds", None)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            was_open, self._open = self._open, False
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while True:
                    call = self._calls.get_nowait()
                    if call is not None:
                        call[0].cancel()
            was_open = True  # what told the threads to end may have been taken out as well
        if was_open:
            for _ in self._threads:
                self._calls.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self, rank: int) -> None:
        worker = _Worker(rank)
        while (call := self._calls.get()) is not None:
            future, message, seconds = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(worker.call(message, seconds))
            except BaseException as error:
                future.set_exception(error)
            del future, message, call  # not held while waiting for the next
        worker.stop()


class _Worker:
    """A process and the parent's end of its pipe."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def call(self, message: bytes, seconds: float | None) -> Any:
        """Return what the call gives in the worker, or raise what it raises there, or `WorkerDied`."""
        if self._process is None or not self._process.is_alive():
            self.stop()
            self._start()
        assert self._process is not None
        assert self._pipe is not None
        late = threading.Event()
        timer = threading.Timer(seconds or 0, _kill, (self._process, late))
        timer.daemon = True
        if seconds:
            timer.start()
        try:
            self._pipe.send_bytes(message)
            succeeded, value = self._pipe.recv()
        except (EOFError, OSError):
            timer.cancel()
            self._process.join(STOP_SECONDS)
            code = self._process.exitcode
            self.stop()
            if late.is_set():
                raise WorkerDied(f"a worker had not finished after {seconds:.0f} s and was ended") from None
            raise WorkerDied(f"a worker ended unexpectedly, with exit code {code}") from None
        finally:
            timer.cancel()
            if late.is_set():
                self.stop()
        if not succeeded:
            raise value
        return value

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._rank), daemon=True)
        with _worker_start():
            self._process.start()
        theirs.close()  # the worker's is then the only one: reading ends when it dies

    def stop(self) -> None:
        """End the process; one that waits for a call ends by itself."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join(STOP_SECONDS)
            self._process.kill()
            self._process.join()
        self._pipe = self._process = None


def _kill(process: BaseProcess, late: threading.Event) -> None:
    late.set()
    process.kill()


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


def _work(pipe: Connection, rank: int) -> None:
    """Answer calls until the parent closes its end. Interrupts are left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[RANK_VARIABLE] = str(rank)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        pipe.send_bytes(_answer(message))


def _answer(message: bytes) -> bytes:
    try:
        fn, args, kwargs = pickle.loads(message)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        return bytes(ForkingPickler.dumps((True, fn(*args, **kwargs))))
    except Exception as error:
        error.add_note("in a worker:\n" + traceback.format_exc())
        try:
            answer = bytes(ForkingPickler.dumps((False, error)))
            pickle.loads(answer)  # an exception whose constructor wants more than its message cannot be read
            return answer
        except Exception:
            return bytes(ForkingPickler.dumps((False, RuntimeError(f"{type(error).__name__}: {error}"))))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed parent cannot tell its workers to stop, and a busy one would go on
