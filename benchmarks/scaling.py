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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

import openmm_sgm as sgm
from openmm_sgm.system_file import load_system
from openmm_sgm.workers import Limited

ROOT = Path(__file__).parents[1]
SYSTEM = ROOT / "systems" / "alanine_dipeptide_obc"
RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
FORCE_EVALUATIONS, SEED = 200_000, 1
WORKERS = (1, 2, 10, 100, 1000)
HEAVIER = 100.0
"""A force field this much slower per evaluation, as of a molecule of some thousand atoms."""
LATENCY_SECONDS = 0.001
"""From the end of a unit to the start of the worker's next, for `WorkerPool` on this machine; some 10 ms for Parsl."""
KINDS = {"_run_chunk": "dynamics", "_evaluate_chunk": "energies", "_sample_unit": "draws", "_density_unit": "densities"}


class SimulatedWorkers(Executor):
    """Runs units when they are submitted, and keeps the time that so many workers would have taken.

    Attributes
    ----------
    busy : seconds of work, by its kind; now : seconds since the start on the virtual clock of the submitting process
    """

    def __init__(self, workers: int, heavier: float = 1.0, latency: float = LATENCY_SECONDS) -> None:
        self.heavier, self.latency = heavier, latency
        self.free = [0.0] * workers
        self.busy: dict[str, float] = defaultdict(float)
        self.units, self.now, self._mark = 0, 0.0, time.process_time()

    def tick(self) -> None:
        """Charge what this process has computed since the last call to its own clock."""
        spent = time.process_time() - self._mark
        self.busy["main process"] += spent
        self.now += spent
        self._mark = time.process_time()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        function = fn.function if isinstance(fn, Limited) else fn
        kind = KINDS.get(function.__name__, "other")
        pickle.dumps((args, kwargs))  # what handing it over costs this process
        self.tick()
        begun = time.process_time()
        result = fn(*args, **kwargs)
        seconds = time.process_time() - begun
        if kind in ("dynamics", "energies"):
            seconds *= self.heavier
        self.busy[kind] += seconds
        self.units += 1
        end = max(heapq.heappop(self.free), self.now) + self.latency + seconds
        heapq.heappush(self.free, end)
        self._mark = time.process_time()
        future = _AtTime(self, end)
        future.set_result(result)
        return future


class _AtTime(Future[Any]):
    """A result that whoever asks for has to wait for, on the virtual clock."""

    def __init__(self, workers: SimulatedWorkers, end: float) -> None:
        super().__init__()
        self.workers, self.end = workers, end

    def result(self, timeout: float | None = None) -> Any:
        self.workers.tick()
        self.workers.now = max(self.workers.now, self.end)
        return super().result(timeout)


@dataclass
class Run:
    """One run: seconds (virtual, or of a real clock), seconds of work by kind, units."""

    workers: int
    seconds: float
    busy: dict[str, float] = field(default_factory=dict)
    units: int = 0

    def row(self, alone: float) -> dict[str, Any]:
        efficiency = alone / self.seconds / self.workers
        return {"workers": self.workers, "seconds": self.seconds, "efficiency": efficiency, "units": self.units} | {
            "seconds_of": self.busy
        }


def sampler(executor: Executor | None, workers: int) -> sgm.ScoreSampler:
    options = sgm.SamplerOptions().made_quick()
    return sgm.ScoreSampler(load_system(SYSTEM), seed=SEED, workers=workers, executor=executor, options=options)


def simulated(workers: int, heavier: float) -> Run:
    executor = SimulatedWorkers(workers, heavier)
    run = sampler(executor, workers)
    executor.tick()
    executor.busy.clear()
    executor.now, executor.free = 0.0, [0.0] * workers
    run.run(budget())
    executor.tick()
    return Run(workers, executor.now, dict(executor.busy), executor.units)


def real(workers: int) -> Run:
    run = sampler(None, workers)
    started = time.perf_counter()
    run.run(budget())
    return Run(workers, time.perf_counter() - started)


def budget() -> int:
    return FORCE_EVALUATIONS // (10 if "--quick" in sys.argv else 1)


def main() -> None:
    results: dict[str, Any] = {"force_evaluations": budget(), "latency_seconds": LATENCY_SECONDS, "heavier": HEAVIER}
    for name, heavier in (("as it is", 1.0), ("heavier", HEAVIER)):
        runs = [simulated(workers, heavier) for workers in WORKERS]
        results[name] = [run.row(runs[0].seconds) for run in runs]
        for row in results[name]:
            print(name, json.dumps(row), flush=True)
    runs = [real(workers) for workers in (1, 2)]
    results["real"] = [{"workers": run.workers, "seconds": run.seconds} for run in runs]
    print(results["real"])
    if "--quick" not in sys.argv:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
