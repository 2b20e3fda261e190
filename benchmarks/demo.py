"""The demo with three seeds: time, memory, and the surface against the reference that lies in the system's folder.

    python benchmarks/demo.py [FORCE_EVALUATIONS] [SEED ...]

Draws the surface of the first seed to docs/surface.png. Peak memory is that of the largest process so far. `error` is
the RMS difference from the reference over bins below 20.92 kJ/mol (5 kcal/mol) after aligning both by their mean there,
`reported` the RMS of the surface's own standard errors over the same bins, and `expected` that together with the
reference's own.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from openmm_sgm.figures import RunData, draw_surface

ROOT = Path(__file__).parents[1]
SYSTEM = ROOT / "systems" / "alanine_dipeptide_vacuum"
REFERENCES = ("alanine_dipeptide_vacuum.csv", "umbrella_below_40.csv")
BELOW_KJ_MOL = 20.92
MIB = 1024 if sys.platform != "darwin" else 1024**2


def main(evaluations: int, seeds: list[int]) -> None:
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "run"
            command = [
                sys.executable, "-m", "openmm_sgm.cli", "run", str(SYSTEM), "--output", str(output),
                "--seed", str(seed), "--force-evaluations", str(evaluations),
            ]  # fmt: skip
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
            result = json.loads((output / "result.json").read_text())
            rows.append(
                {
                    "seed": seed,
                    "processors": os.cpu_count(),
                    "seconds": round(seconds, 1),
                    "largest_process_mib_so_far": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / MIB),
                    **{key: result[key] for key in ("force_evaluations", "wall_seconds", "acceptance", "ess")},
                    "density_error_kt": result["density_error_kt"],
                    "micro_macro_rmse_kj_mol": result["micro_macro_rmse_kj_mol"],
                    "simulated_minus_generated_kj_mol": result["simulated_minus_generated_kj_mol"],
                    "against": {
                        name: compare(output / "surface.csv", SYSTEM / "reference" / name)
                        for name in REFERENCES
                        if (SYSTEM / "reference" / name).is_file()
                    },
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            if len(rows) == 1:
                draw_surface(RunData(output)).savefig(ROOT / "docs" / "surface.png", dpi=100)
    (ROOT / "benchmarks" / "results" / "demo.json").write_text(json.dumps(rows, indent=1) + "\n")


def compare(surface: Path, reference: Path) -> dict[str, float]:
    ours, own_error = read(surface)
    theirs, their_error = read(reference)
    low = theirs - np.nanmin(theirs) < BELOW_KJ_MOL
    both = low & np.isfinite(ours)
    difference = ours[both] - theirs[both]
    reported = float(np.mean(own_error[both] ** 2))
    return {
        "error": round(float(difference.std()), 3),
        "covered": round(both.sum() / low.sum(), 3),
        "reported": round(reported**0.5, 3),
        "expected": round((reported + float(np.nanmean(their_error[both] ** 2))) ** 0.5, 3),
    }


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return free energies and their errors in the order of the bins, NaN where empty."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(  # type: ignore[return-value]
        np.array([float(row[key] or "nan") for row in rows]) for key in ("free_energy_kj_mol", "std_error_kj_mol")
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 250_000, [int(seed) for seed in sys.argv[2:]] or [1, 2, 3])
