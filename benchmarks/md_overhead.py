"""Speed of molecular dynamics inside the package against a bare `integrator.step`, measured side by side.

    python benchmarks/md_overhead.py [SYSTEM_FOLDER]

Runs of the two alternate, so that a busy machine slows both alike, in one and the same context, because two contexts of
one system can differ by 2 % with where they lie in memory. The package also stores positions, energies and forces every
few steps; the bare integrator stores nothing. `ceiling` is what is left of the bare speed when every stored frame costs
a bare `getState` and nothing else: no program can exceed it.
"""

from __future__ import annotations

import json
import platform as host
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openmm

from openmm_sgm.engine import engine_for
from openmm_sgm.executors import SerialExecutor
from openmm_sgm.platforms import choose_platform
from openmm_sgm.simulate import MDSettings, Segment, run_segments
from openmm_sgm.system_file import load_system

ROOT = Path(__file__).parents[1]
FRAME_INTERVALS = (50, 100)
TURNS = 31
TURN_SECONDS = 0.25
FORCE_CONSTANT = 100.0


def main(folder: Path) -> None:
    molecule = load_system(folder)
    system, prefixes, groups = molecule.biased_system()
    choice = choose_platform(system, molecule.positions)
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
    steps_per_second = choice.steps_per_second[choice.name]
    rows = [
        {"system": folder.name, "platform": choice.name, "openmm": openmm.version.full_version, "host": host.machine()}
        | compare(
            settings, molecule.positions, interval, interval * max(1, round(TURN_SECONDS * steps_per_second / interval))
        )
        for interval in FRAME_INTERVALS
    ]
    output = ROOT / "benchmarks" / "results" / "md_overhead.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


def compare(settings: MDSettings, positions: np.ndarray, interval: int, steps: int) -> dict[str, float]:
    segment = Segment(
        walker=0,
        positions=positions,
        velocities=None,
        center=np.zeros(len(settings.bias_prefixes)),
        force_constants=np.full(len(settings.bias_prefixes), FORCE_CONSTANT),
        pull_from=None,
        pull_steps=0,
        equilibration_steps=0,
        steps=steps,
        frame_interval=interval,
        seed=1,
    )
    engine = engine_for(settings)

    def bare() -> None:
        engine.integrator.step(steps)
        engine.context.getState(energy=True)  # waits for a device that runs ahead

    def with_states() -> None:
        for _ in range(steps // interval):
            engine.integrator.step(interval)
            engine.context.getState(positions=True, energy=True, forces=True, groups=settings.physical_groups)

    def packaged() -> None:
        (result,) = run_segments(settings, [segment], SerialExecutor(), 1)
        assert result.failure is None, result.failure

    packaged()  # places the atoms and fills caches
    seconds = np.array([[timed(run) for run in (bare, with_states, packaged)] for _ in range(TURNS)])
    ratios = seconds[:, :1] / seconds
    return {
        "frame_interval": interval,
        "steps_per_turn": steps,
        "turns": TURNS,
        "bare_steps_per_second": round(steps / float(np.median(seconds[:, 0]))),
        "package_steps_per_second": round(steps / float(np.median(seconds[:, 2]))),
        "ratio": round(float(np.median(ratios[:, 2])), 4),
        "ratio_lower_quartile": round(float(np.quantile(ratios[:, 2], 0.25)), 4),
        "ratio_upper_quartile": round(float(np.quantile(ratios[:, 2], 0.75)), 4),
        "ceiling": round(float(np.median(ratios[:, 1])), 4),
    }


def timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "systems" / "alanine_dipeptide_vacuum")
