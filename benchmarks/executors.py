"""Throughput of the simulate phase on two workers against one, and what handing out units costs.

    python benchmarks/executors.py [SYSTEM_FOLDER]

Every turn runs the same segments, by as many units as a run would choose: in this process, in a pool of one worker, in
a pool of two, and on Parsl's local workers (one, then two) where Parsl is installed, in another order each turn, so
that a busy machine slows all alike; overheads and ratios are medians over turns, with the standard error of a median.
Workers are started, and have made their context, before the clock runs. `independent` is the limit that the machine
sets: the same segments halved between two processes that share nothing and are handed nothing while they run.
`overhead` is the time of one worker over that in this process, minus one; `share_of_limit` the time of the two
independent processes over that of two workers.
`serialised_mb` and `send_seconds` are the size of the system in a unit and the time to pack and unpack it, for the
question whether units should carry it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from concurrent.futures import Executor
from contextlib import ExitStack
from importlib.util import find_spec
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import openmm

from openmm_sgm.executors import Pace, SerialExecutor, UnitCounts, make_executor
from openmm_sgm.parsl_pool import ParslOptions, ParslPool
from openmm_sgm.platforms import choose_platform
from openmm_sgm.simulate import MDSettings, Segment, run_segments
from openmm_sgm.system_file import load_system
from openmm_sgm.windows import WindowGrid

ROOT = Path(__file__).parents[1]
PHASE_SECONDS, WINDOWS, FRAME_INTERVAL, TURNS = 12.0, 120, 20, 12


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float]:
    """Return the median over turns of the ratio of two times of a turn, and its standard error by the bootstrap."""
    ratios = np.array(numerator) / np.array(denominator)
    again = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    return float(np.median(ratios)), float(np.median(again, axis=1).std())


def run_alone(settings: MDSettings, segments: list[Segment], barrier: Barrier) -> None:
    """Run the segments when all processes are ready, once a turn."""
    executor = SerialExecutor()
    run_segments(settings, segments[:4], executor, 4)
    for _ in range(TURNS):
        barrier.wait()
        run_segments(settings, segments, executor, 1)
        barrier.wait()


def main(folder: Path) -> None:
    molecule = load_system(folder)
    system, prefixes, groups = molecule.biased_system()
    choice = choose_platform(system, molecule.positions)
    speed = choice.steps_per_second[choice.name]
    settings = MDSettings(
        system_xml=openmm.XmlSerializer.serialize(system),
        physical_groups=groups,
        bias_prefixes=prefixes,
        temperature_k=molecule.temperature_k,
        time_step_fs=molecule.time_step_fs,
        friction_per_ps=molecule.friction_per_ps,
        platform=choice.name,
        platform_properties=choice.properties,
    )
    grid = WindowGrid.over(molecule.cvs, molecule.temperature_k)
    window = grid.nearest(molecule.evaluate_cvs(molecule.positions[None])[0])
    steps = max(1, round(PHASE_SECONDS * speed / WINDOWS / FRAME_INTERVAL)) * FRAME_INTERVAL
    segments = [
        Segment(
            walker=k,
            positions=molecule.positions,
            velocities=None,
            center=grid.centers[window],
            force_constants=grid.force_constants,
            pull_from=None,
            pull_steps=0,
            equilibration_steps=0,
            steps=steps,
            frame_interval=FRAME_INTERVAL,
            seed=k,
        )
        for k in range(WINDOWS)
    ]
    with ExitStack() as stack:
        places: dict[str, tuple[Executor, int]] = {"serial": (SerialExecutor(), 1)}
        for workers in (1, 2):
            places[f"processes_{workers}"] = (stack.enter_context(make_executor(workers)), workers)
        if find_spec("parsl"):
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for workers in (1, 2):
                options = ParslOptions(max_workers_per_node=workers, cores_per_worker=0.5)
                places[f"parsl_{workers}"] = (stack.enter_context(ParslPool(options, logs / str(workers))), workers)
        seconds: dict[str, list[float]] = {name: [] for name in places}
        units = {}
        for executor, workers in places.values():
            run_segments(settings, segments[: 4 * workers], executor, 4 * workers)
        spawn = multiprocessing.get_context("spawn")
        barrier = spawn.Barrier(3)
        for half in (segments[::2], segments[1::2]):
            spawn.Process(target=run_alone, args=(settings, half, barrier), daemon=True).start()
        seconds["independent_2"] = []
        order = np.random.default_rng(0)
        for _ in range(TURNS):
            for name in order.permutation(list(seconds)):
                if name == "independent_2":
                    barrier.wait()
                    started = time.perf_counter()
                    barrier.wait()
                    seconds[name].append(time.perf_counter() - started)
                    continue
                executor, workers = places[name]
                counts = UnitCounts()
                started = time.perf_counter()
                results = run_segments(settings, segments, executor, workers, Pace(1 / speed), counts)
                seconds[name].append(time.perf_counter() - started)
                units[name] = counts.run
                assert not any(result.failure for result in results)
    started = time.perf_counter()
    packed = pickle.dumps(settings)
    pickle.loads(packed)
    rows = {
        "system": folder.name,
        "platform": choice.name,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "steps": steps * WINDOWS,
        "seconds": seconds,
        "units": units,
        "serialised_mb": len(packed) / 1e6,
        "send_seconds": time.perf_counter() - started,
    }
    rows["independent_speed_up_2"] = ratio(seconds["serial"], seconds["independent_2"])
    for kind in ("processes", "parsl"):
        if f"{kind}_1" in seconds:
            one, two = seconds[f"{kind}_1"], seconds[f"{kind}_2"]
            median, error = ratio(one, seconds["serial"])
            rows[f"{kind}_overhead"] = (median - 1, error)
            rows[f"{kind}_speed_up_2"] = ratio(one, two)
            rows[f"{kind}_share_of_limit"] = ratio(seconds["independent_2"], two)
    output = ROOT / "benchmarks" / "results" / "executors.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "systems" / "alanine_dipeptide_vacuum")
