"""Speed of molecular dynamics inside the package against a bare `integrator.step`, measured side by side.

    python benchmarks/md_overhead.py [SYSTEM_FOLDER]

Both run the same biased system on the platform that the package chooses, in turns, so that a busy machine slows both
alike. The package also stores positions, energies and forces every 50 steps; the bare integrator stores nothing.
"""

from __future__ import annotations

import json
import platform as host
import sys
import time
from pathlib import Path

import numpy as np
import openmm

from openmm_sgm.executors import SerialExecutor
from openmm_sgm.platforms import choose_platform
from openmm_sgm.simulate import CONSTRAINT_TOLERANCE, MDSettings, Segment, run_segments
from openmm_sgm.system import load_system

ROOT = Path(__file__).parents[1]
FRAME_INTERVAL = 50
TURNS = 31
TURN_SECONDS = 0.25
FORCE_CONSTANT = 100.0


def main(folder: Path) -> None:
    molecule = load_system(folder)
    system, prefixes, groups = molecule.biased_system()
    positions = np.asarray(molecule.positions, dtype=float)
    choice = choose_platform(system, positions)
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
    steps = FRAME_INTERVAL * max(1, round(TURN_SECONDS * choice.steps_per_second[choice.name] / FRAME_INTERVAL))
    center = np.zeros(len(prefixes))
    segment = Segment(
        walker=0,
        positions=positions,
        velocities=None,
        center=center,
        force_constants=np.full(len(prefixes), FORCE_CONSTANT),
        pull_from=None,
        pull_steps=0,
        equilibration_steps=0,
        steps=steps,
        frame_interval=FRAME_INTERVAL,
        seed=1,
    )

    integrator = openmm.LangevinMiddleIntegrator(
        settings.temperature_k, settings.friction_per_ps, settings.time_step_fs / 1000
    )
    integrator.setConstraintTolerance(CONSTRAINT_TOLERANCE)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(choice.name), choice.properties)
    context.setPositions(positions)
    context.setVelocitiesToTemperature(settings.temperature_k, 1)
    for prefix in prefixes:
        context.setParameter(f"{prefix}_center", 0.0)
        context.setParameter(f"{prefix}_force_constant", FORCE_CONSTANT)

    def bare() -> float:
        start = time.perf_counter()
        integrator.step(steps)
        context.getState(energy=True)  # waits for a device that runs ahead
        return steps / (time.perf_counter() - start)

    def packaged() -> float:
        start = time.perf_counter()
        (result,) = run_segments(settings, [segment], SerialExecutor(), 1)
        elapsed = time.perf_counter() - start
        assert result.failure is None, result.failure
        return steps / elapsed

    bare(), packaged()  # contexts are made and caches filled
    speeds = np.array([(bare(), packaged()) for _ in range(TURNS)])
    ratios = speeds[:, 1] / speeds[:, 0]
    row = {
        "system": folder.name,
        "platform": choice.name,
        "host": f"{host.machine()} {host.system()}",
        "openmm": openmm.version.full_version,
        "frame_interval": FRAME_INTERVAL,
        "steps_per_turn": steps,
        "turns": TURNS,
        "bare_steps_per_second": round(float(np.median(speeds[:, 0]))),
        "package_steps_per_second": round(float(np.median(speeds[:, 1]))),
        "ratio_median": round(float(np.median(ratios)), 4),
        "ratio_quartiles": [round(float(q), 4) for q in np.quantile(ratios, [0.25, 0.75])],
    }
    output = ROOT / "benchmarks" / "results" / "md_overhead.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "systems" / "alanine_dipeptide_vacuum")
