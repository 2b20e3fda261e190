"""What each part of the method brings: runs with one part taken out or put back, alanine dipeptide in vacuum.

    python benchmarks/ablation.py [--evaluations N] [--seeds 21,22] [--only NAME,NAME]

Two runs at a time, one process each. Errors are against `umbrella_below_40.csv`. Writes
benchmarks/results/ablation.json (a record of a variant and seed is replaced when it is run again), and from it
docs/ablation.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ablation.json"
SYSTEM = ROOT / "systems" / "alanine_dipeptide_vacuum"

SHIPPED = "as shipped"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    SHIPPED: ("", {}),
    "no forces": ("denoising score matching alone: `TrainingOptions(use_forces=False)`", {"use_forces": False}),
    "one label a frame": ("a frame teaches only the window that it came from", {"patch": "one_label"}),
    "hydrogens not exchanged": ("methyl hydrogens are not relabelled at random", {"patch": "no_rotors"}),
    "nothing learnt from draws": ("training on simulated frames alone", {"patch": "md_only"}),
    "cold starts": ("every training begins with new weights", {"patch": "cold"}),
    "wider network": ("256 hidden units a block instead of 128", {"hidden": 256}),
    "windows by pulling": ('no trials in the exploration: `explore_by="pulling"`', {"explore_by": "pulling"}),
    "first round counted": ("the first round's draws stay in the estimate", {"patch": "first_round"}),
    "rounds double": ("each round generates twice, not three times, as much as the one before", {"growth": 2.0}),
    "a tenth for dynamics": ("`md_share=0.1` instead of 0.3", {"md_share": 0.1}),
    "a quarter outside": ("`outside_share=0.25` instead of 0.5", {"outside_share": 0.25}),
}


@contextlib.contextmanager
def patched(name: str | None) -> Iterator[None]:
    """Within, one part of the package is replaced by what it would be without it."""
    import numpy as np

    from openmm_sgm import campaign, training

    if name is None:
        yield
        return
    owner: Any
    original: Callable[..., Any]
    if name == "one_label":
        owner, attribute, original = training, "_draw_rows", training._draw_rows

        def substitute(level: Any, rng: Any) -> Any:
            windows = level.frames.column("windows")
            size = np.bincount(windows, level.weights)
            share = level.weights / np.maximum(size[windows], 1e-12)
            rows = rng.choice(len(windows), size=level.rows, p=share / share.sum())
            return rows, level.grid.centers[windows[rows]]
    elif name == "no_rotors":
        owner, attribute = campaign, "threefold_rotors"

        def substitute(*_: Any) -> Any:
            return [], 0
    elif name == "md_only":
        owner, attribute, original = campaign.Campaign, "_training_frames", campaign.Campaign._training_frames

        def substitute(self: Any, rows: int) -> Any:
            kept = self.trials, self.rounds
            self.trials, self.rounds = [], []
            try:
                return original(self, rows)
            finally:
                self.trials, self.rounds = kept
    elif name == "cold":
        owner, attribute = training, "_same_coordinates"

        def substitute(*_: Any) -> Any:
            return False
    elif name == "first_round":
        owner, attribute = campaign.Campaign, "leave_out_what_was"

        def substitute(self: Any) -> None:
            return None
    else:
        raise ValueError(f"there is no patch '{name}'")

    with mock.patch.object(owner, attribute, substitute):
        yield


def run(name: str, seed: int, evaluations: int) -> list[dict[str, Any]]:
    """Run a variant; return its record, and of the shipped one also those of the other estimators."""
    import numpy as np

    from openmm_sgm.frames import INJECTED, Frames
    from openmm_sgm.free_energy import estimate
    from openmm_sgm.mbar import mbar_free_energies
    from openmm_sgm.measure import load_reference, surface_error
    from openmm_sgm.networks import NetworkOptions
    from openmm_sgm.options import SamplerOptions
    from openmm_sgm.sampler import ScoreSampler
    from openmm_sgm.system_file import load_system
    from openmm_sgm.training import TrainingOptions
    from openmm_sgm.umbrella import surface_bins

    changes = dict(VARIANTS[name][1])
    patch = changes.pop("patch", None)
    training = TrainingOptions(use_forces=changes.pop("use_forces", True))
    network = NetworkOptions(hidden=changes.pop("hidden", NetworkOptions().hidden))
    molecule = load_system(SYSTEM)
    reference = load_reference(SYSTEM / "reference" / "umbrella_below_40.csv", molecule)
    options = SamplerOptions(training=training, network=network, **changes)
    sampler = ScoreSampler(molecule, seed=seed, workers=0, options=options)
    started = time.perf_counter()
    with patched(patch):
        sampler.run(evaluations)
    last = sampler.history[-1]
    campaign = sampler.campaign
    assert campaign is not None

    def record(variant: str, surface: Any) -> dict[str, Any]:
        error = surface_error(surface, reference)
        return {
            "variant": variant,
            "seed": seed,
            "budget": evaluations,
            "explored_with": sampler.history[0]["force_evaluations"],
            "rmse_kj_mol": round(error.rmse_kj_mol, 3),
            "coverage": round(error.coverage, 3),
            "within_two_se": round(error.within_two_se, 3),
            "acceptance": last["acceptance"],
            "ess": last["ess"],
            "seconds": round(time.perf_counter() - started, 1),
        }

    records = [record(name, sampler.surface())]
    if name == SHIPPED:
        records.append(record("draws alone", sampler.surface(method="generator")))
        records.append(record("chains alone", sampler.surface(method="mbar")))
        drawn = Frames.concatenate([draws.frames for draws in campaign.counted])
        n = len(drawn)
        taken = replace(drawn, log_weights=np.zeros(n), source=np.full(n, INJECTED, dtype=np.int8))
        edges, names, units = surface_bins(molecule)
        f = mbar_free_energies(taken, campaign.grid, campaign.free_energies)[0]
        untested = estimate(
            taken, [], campaign.grid, edges, names, units, method="mbar", mbar=f, rng=np.random.default_rng(seed)
        )
        records.append(record("draws untested", untested.surface))
    return records


NOTES = (
    "The differences between two seeds of one variant are 5 to 25 %, so that only large effects are told "
    'apart here. "First round counted" puts back its dynamics and Metropolis states too. "Draws '
    'untested" leaves the draws that are no configurations, clash or have the wrong handedness out as '
    'before. "Windows by pulling" cannot finish its exploration within half of this budget: its 0.87 of '
    "the bins is what that costs. Exploration is what had been spent when the windows were open."
)

ESTIMATORS = {
    "draws alone": "the same runs, surface from the draws' exact weights without the simulations",
    "chains alone": "the same runs, MBAR over simulations and Metropolis chains without the weights",
    "draws untested": "the same runs, the draws taken as samples of their windows: no test, no weights",
}


def write_table(records: list[dict[str, Any]]) -> None:
    """Write docs/ablation.md."""
    lines = [
        "# What each part brings",
        "",
        f"Alanine dipeptide in vacuum, {records[0]['budget']:,} force evaluations, one part changed at a time. RMS "
        "error below 5 kcal/mol against `umbrella_below_40.csv` (kJ/mol), one number a seed; coverage, acceptance and "
        "effective sample size (ESS) are means over the seeds, seconds are of one core with another run beside it. "
        f"`python benchmarks/ablation.py` makes this file, seeds {', '.join(str(s) for s in _seeds(records))}.",
        "",
        "| variant | what is different | RMS error | coverage | within 2 SE | ESS | acceptance | exploration | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in [SHIPPED, *ESTIMATORS, *(v for v in VARIANTS if v != SHIPPED)]:
        own = [r for r in records if r["variant"] == name]
        if own:

            def mean(key: str, own: list[dict[str, Any]] = own) -> float:
                values = [r[key] for r in own if r[key] is not None]
                return sum(values) / len(values) if values else float("nan")

            what = ESTIMATORS.get(name) or VARIANTS[name][0] or "the defaults"
            errors = ", ".join(f"{r['rmse_kj_mol']:.2f}" for r in own)
            lines.append(
                f"| {name} | {what} | {errors} | {mean('coverage'):.2f} | {mean('within_two_se'):.2f} | "
                f"{mean('ess'):.2f} | {mean('acceptance'):.2f} | {mean('explored_with') / 1000:.0f}k | "
                f"{mean('seconds'):.0f} |"
            )
    (ROOT / "docs" / "ablation.md").write_text("\n".join([*lines, "", NOTES]) + "\n")


def _seeds(records: list[dict[str, Any]]) -> list[int]:
    return sorted({r["seed"] for r in records})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=100_000)
    parser.add_argument("--seeds", default="21,22")
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help="run one and print its records")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(run(asked.one[0], int(asked.one[1]), asked.evaluations)))
        return

    def start(job: tuple[str, str]) -> list[dict[str, Any]]:
        command = [sys.executable, __file__, "--evaluations", str(asked.evaluations), "--one", *job]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return list(json.loads(done.stdout.splitlines()[-1]))

    jobs = [(name, seed) for name in asked.only.split(",") for seed in asked.seeds.split(",")]
    with ThreadPoolExecutor(2) as pool:
        for new in pool.map(start, jobs):
            records = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
            replaced = {(r["variant"], r["seed"], r["budget"]) for r in new}
            records = [r for r in records if (r["variant"], r["seed"], r["budget"]) not in replaced] + new
            RESULTS.write_text(json.dumps(records, indent=1) + "\n")
            write_table([r for r in records if r["budget"] == asked.evaluations])
            print(new, flush=True)


if __name__ == "__main__":
    main()
