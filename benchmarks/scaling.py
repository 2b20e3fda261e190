"""What more workers bring: the loop on a simulated executor, checked against real runs with one and two workers.

    python benchmarks/scaling.py [--quick]

`SimulatedWorkers` is an executor with a clock of its own. Every unit runs once, in this process, and its processor time
is charged to the virtual worker that is free first; the loop's own processor time (training, MBAR, bookkeeping) and the
packing of every unit are charged to the one process that hands work out. Units are cut for the number of workers that
is simulated, so that what comes out is the loop as it would be with so many. Processor time is hardly disturbed by what
else the machine does; the real runs need it to themselves. Writes results/scaling.json, which docs/scaling.md quotes.
"""

from __future__ import annotations

import heapq
import json
import pickle
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

import openmm_sgm as sgm
from openmm_sgm.system_file import load_system
from openmm_sgm.workers import Limited

ROOT = Path(__file__).parents[1]
SYSTEM = ROOT / "systems" / "alanine_dipeptide_obc"
RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
FORCE_EVALUATIONS, SEED = 100_000, 1
WORKERS = (1, 2, 10, 100, 1000)
HEAVIER = 100.0
"""A force field this much slower per evaluation, as of a molecule of some thousand atoms."""
LATENCY_SECONDS = 0.001
"""From the end of a unit to the start of the worker's next, for `WorkerPool` on this machine; some 10 ms for Parsl."""
KINDS = {"_run_chunk": "dynamics", "_evaluate_chunk": "energies", "_sample_unit": "draws", "_density_unit": "densities"}


class _Clock:
    """Virtual time of one kind of system: when each worker is free, where the submitting process is, work done."""

    def __init__(self, workers: int, heavier: float) -> None:
        self.heavier, self.free, self.now = heavier, [0.0] * workers, 0.0
        self.busy: dict[str, float] = defaultdict(float)

    def work(self, kind: str, seconds: float, latency: float) -> float:
        """Give a unit to the worker that is free first; return when it ends."""
        if kind in ("dynamics", "energies"):
            seconds *= self.heavier
        self.busy[kind] += seconds
        end = max(heapq.heappop(self.free), self.now) + latency + seconds
        heapq.heappush(self.free, end)
        return end


class SimulatedWorkers(Executor):
    """Runs units when they are submitted, and keeps the time that so many workers would have taken.

    Attributes
    ----------
    clocks : one for the system as it is, and one for a heavier one
    """

    def __init__(self, workers: int, latency: float = LATENCY_SECONDS) -> None:
        self.clocks = [_Clock(workers, heavier) for heavier in (1.0, HEAVIER)]
        self.latency, self.units, self._mark = latency, 0, time.process_time()

    def tick(self) -> None:
        """Charge what this process has computed since the last call to its own clock."""
        spent = time.process_time() - self._mark
        for clock in self.clocks:
            clock.busy["main process"] += spent
            clock.now += spent
        self._mark = time.process_time()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        function = fn.function if isinstance(fn, Limited) else fn
        kind = KINDS.get(function.__name__, "other")
        pickle.dumps((args, kwargs))  # what handing it over costs this process
        self.tick()
        result = fn(*args, **kwargs)
        seconds = time.process_time() - self._mark
        ends = [clock.work(kind, seconds, self.latency) for clock in self.clocks]
        self.units += 1
        self._mark = time.process_time()
        future = _AtTime(self, ends)
        future.set_result(result)
        return future


class _AtTime(Future[Any]):
    """A result that whoever asks for has to wait for, on the virtual clocks."""

    def __init__(self, workers: SimulatedWorkers, ends: list[float]) -> None:
        super().__init__()
        self.workers, self.ends = workers, ends

    def result(self, timeout: float | None = None) -> Any:
        self.workers.tick()
        for clock, end in zip(self.workers.clocks, self.ends, strict=True):
            clock.now = max(clock.now, end)
        return super().result(timeout)


def sampler(executor: Executor | None, workers: int) -> sgm.ScoreSampler:
    options = sgm.SamplerOptions().made_quick()
    return sgm.ScoreSampler(load_system(SYSTEM), seed=SEED, workers=workers, executor=executor, options=options)


def simulated(workers: int) -> list[dict[str, Any]]:
    """Return for each clock the seconds, of which kinds of work, and the number of units."""
    executor = SimulatedWorkers(workers)
    run = sampler(executor, workers)
    executor._mark = time.process_time()  # the sampler's own start, the platform's timing, is not the loop's
    run.run(budget())
    executor.tick()
    return [
        {"workers": workers, "seconds": clock.now, "units": executor.units, "seconds_of": dict(clock.busy)}
        for clock in executor.clocks
    ]


def real(workers: int) -> dict[str, Any]:
    run = sampler(None, workers)
    started = time.perf_counter()
    run.run(budget())
    return {"workers": workers, "seconds": time.perf_counter() - started}


def budget() -> int:
    return FORCE_EVALUATIONS // (10 if "--quick" in sys.argv else 1)


def main() -> None:
    results: dict[str, Any] = {"force_evaluations": budget(), "latency_seconds": LATENCY_SECONDS, "heavier": HEAVIER}
    results["real"] = [real(workers) for workers in (1, 2)]
    print(results["real"], flush=True)
    by_clock = list(zip(*(simulated(workers) for workers in WORKERS), strict=True))
    for name, rows in zip(("as it is", "heavier"), by_clock, strict=True):
        results[name] = [row | {"efficiency": rows[0]["seconds"] / row["seconds"] / row["workers"]} for row in rows]
        for row in results[name]:
            print(name, json.dumps(row), flush=True)
    if "--quick" not in sys.argv:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
