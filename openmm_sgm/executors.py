"""Where work runs: anything that obeys `concurrent.futures.Executor`, by default one process a core.

Work is handed out in units. A unit that fails, whatever the way, is done once more, in smaller pieces where it has
them, and what fails again is set aside with the reason; the rest goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

import threadpoolctl

from .units import InputError, SamplingError, one_line
from .workers import Limited, WorkerDied, WorkerPool

__all__ = [
    "Pace",
    "SerialExecutor",
    "UnitCounts",
    "WorkerPool",
    "make_executor",
    "one_thread",
    "run_safely",
    "run_units",
]

T = TypeVar("T")
R = TypeVar("R")

LEAST_SECONDS, UNKNOWN_SECONDS, PATIENCE = 300.0, 3600.0, 30.0
"""A unit may take `PATIENCE` times the seconds that its like have taken, never less than the first; while nothing is
known of these, the second."""
UNIT_SECONDS, SHORT_SECONDS, UNITS_EACH = 3.0, 0.5, 4
"""Units are of the first length where there is work for it. Below `UNITS_EACH` of them for each worker they are made
shorter, to keep workers evenly busy, but not shorter than the second, where handing them out would cost percents."""


@dataclass
class UnitCounts:
    """What became of units of work.

    Attributes
    ----------
    run : handed out for the first time
    retried : done again after a failure: units that raised, whose worker died or was ended, or whose result could not
        be used, and walkers that blew up and were started again gently
    set_aside : walkers, and pieces of generated configurations, that failed again and were given up
    """

    run: int = 0
    retried: int = 0
    set_aside: int = 0


@dataclass
class Pace:
    """Seconds that one worker takes for a piece of work (an MD step, a draw): the slowest seen, NaN while unknown."""

    seconds: float = float("nan")

    def observe(self, work: float, seconds: float) -> None:
        """Take note of what some work has taken one worker."""
        if work > 0 and not self.seconds >= seconds / work:
            self.seconds = seconds / work

    def limit(self, work: float) -> float:
        """Return the seconds after which a unit of so much work counts as hung."""
        known = self.seconds > 0
        return max(LEAST_SECONDS, PATIENCE * self.seconds * work) if known else UNKNOWN_SECONDS

    def units(self, work: float, workers: int) -> int:
        """Return in how many units to share out some work among workers."""
        if not self.seconds > 0:
            return UNITS_EACH * workers
        each = self.seconds * work / workers
        return workers * max(1, round(each / UNIT_SECONDS), min(UNITS_EACH, int(each / SHORT_SECONDS)))


@dataclass(frozen=True)
class Failure:
    """Why a unit gave no result."""

    error: Exception

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {one_line(self.error)}"


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


def run_units(
    executor: Executor,
    function: Callable[[T], R],
    units: Sequence[T],
    on_error: Callable[[T, Exception], R] | None = None,
    seconds: Callable[[T], float] | None = None,
) -> list[R]:
    """Return `function(unit)` for every unit, in order.

    A unit that raises, or whose worker dies, gives `on_error(unit, error)`; without `on_error` the first error is
    raised and units not yet started are cancelled.

    seconds : how long a unit may take on executors that can end a worker, `WorkerPool` and Parsl's; None for ever
    """
    if function.__module__ == "__main__" and not isinstance(executor, SerialExecutor):
        raise InputError(
            f"{function.__qualname__} is defined in the script itself, which workers do not load: "
            "move it to a module, or use workers=0."
        )
    futures: list[Future[R]] = []
    try:
        for unit in units:
            futures.append(_submit(executor, Limited(function, seconds(unit)) if seconds else function, unit))
        return [_result(future, unit, on_error) for future, unit in zip(futures, units, strict=True)]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def run_safely(
    executor: Executor,
    function: Callable[[T], R],
    units: Sequence[T],
    *,
    give_up: Callable[[T, str], R],
    split: Callable[[T], list[T]] = lambda unit: [unit],
    check: Callable[[T, R], None] = lambda unit, result: None,
    seconds: Callable[[T], float] | None = None,
    counts: UnitCounts | None = None,
) -> list[tuple[list[R], str | None]]:
    """Return for each unit `[function(unit)]`, or, where that failed, the results of the pieces of `split(unit)`.

    Each comes with the reason of the unit's first failure, or None. Pieces are tried once; for one that fails as well
    `give_up(piece, reason)` stands. A failure is an exception, a worker that dies or exceeds its `seconds`, or a result
    that `check(unit, result)` raises on.

    Raises
    ------
    SamplingError
        when the executor takes no more work (a `ProcessPoolExecutor` that has lost a worker).
    """
    counts = counts or UnitCounts()

    def attempt(pieces: Sequence[T]) -> list[R | Failure]:
        function_or_failure: Callable[[T], R | Failure] = function
        results = run_units(executor, function_or_failure, pieces, lambda _, error: Failure(error), seconds)
        return [checked(piece, result) for piece, result in zip(pieces, results, strict=True)]

    def checked(unit: T, result: R | Failure) -> R | Failure:
        try:
            if not isinstance(result, Failure):
                check(unit, result)
        except Exception as error:
            return Failure(error)
        return result

    first = attempt(units)
    pieces = [(k, piece) for k, result in enumerate(first) if isinstance(result, Failure) for piece in split(units[k])]
    again = attempt([piece for _, piece in pieces])
    refused = [isinstance(r, Failure) and _is_broken(r.error) for r in again]
    if refused and all(refused):
        raise SamplingError(f"the executor takes no more work ({again[0]}): give another, or workers=N")
    counts.run += len(units)
    counts.retried += sum(isinstance(result, Failure) for result in first)
    answers: list[tuple[list[R], str | None]] = [
        ([], str(result)) if isinstance(result, Failure) else ([result], None) for result in first
    ]
    for (k, piece), result in zip(pieces, again, strict=True):
        reason = answers[k][1]
        failed = isinstance(result, Failure)
        answers[k][0].append(give_up(piece, f"{reason}; tried again: {result}") if failed else result)  # type: ignore[arg-type]
    return answers


def _is_broken(error: Exception) -> bool:
    return isinstance(error, BrokenExecutor) and not isinstance(error, WorkerDied)


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
