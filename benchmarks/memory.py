"""Does a run of many rounds grow? Resident memory after each of 200 rounds, beside the frames that it must hold.

    python benchmarks/memory.py [--rounds 200] [--output benchmarks/results/memory.json]

Frames and ledger of all rounds stay in memory, since estimates are made of all of them. What grows beyond them would
be a leak: the slope of memory less frames and ledger, over all rounds after the first twenty. Memory that the allocator
holds free is given back before each reading, where the C library can do that.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from openmm_sgm.frames import Frames
from openmm_sgm.journal import Journal
from openmm_sgm.networks import NetworkOptions
from openmm_sgm.options import SamplerOptions
from openmm_sgm.runfolder import save_state
from openmm_sgm.sampler import ScoreSampler
from openmm_sgm.system_file import load_system
from openmm_sgm.training import TrainingOptions

ROOT = Path(__file__).resolve().parents[1]
FIRST = 20
"""Rounds after which caches and allocators have what they need."""


def resident_mb() -> float:
    """Return this process's resident memory in 10⁶ bytes (Linux)."""
    with contextlib.suppress(AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def data_mb(sampler: ScoreSampler) -> float:
    """Return the size of all frames and ledger rows that the campaign holds."""
    campaign = sampler.campaign
    assert campaign is not None
    parts: list[Frames] = [*campaign.chain, *(draws.frames for draws in (*campaign.trials, *campaign.rounds))]
    frames = sum(value.nbytes for part in parts for value in vars(part).values())
    return (frames + campaign.ledger.nbytes) / 1e6


def main() -> None:
    """Run, and write what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--evaluations", type=int, default=400, help="in a round")
    given = parser.parse_args()
    options = SamplerOptions(
        rounds=given.rounds,
        growth=1.0,
        explore_share=0.02,
        exploration_training_steps=20,
        training=TrainingOptions(steps=20, rows=500, batch_size=64, check_every=10),
        network=NetworkOptions(width=16, hidden=16, conditioning=16),
    )
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="memory_") as base:
        journal = Journal(Path(base) / "journal")

        def after_phase(sampler: ScoreSampler) -> None:
            save_state(Path(base), sampler)
            journal.clear()
            sampler._estimates.clear()
            gc.collect()
            assert sampler.campaign is not None
            rows = len(sampler.campaign.ledger)
            records.append({"rss_mb": resident_mb(), "data_mb": data_mb(sampler), "ledger_rows": rows})
            print(len(records) - 2, records[-1], flush=True)

        molecule = load_system(ROOT / "systems" / "three_atoms")
        sampler = ScoreSampler(molecule, seed=1, workers=0, options=options, on_round=after_phase, journal=journal)
        sampler.run(given.evaluations * given.rounds)
    late = records[FIRST:]
    rounds = np.arange(len(late))
    rss, data, rows = (np.array([r[key] for r in late]) for key in ("rss_mb", "data_mb", "ledger_rows"))
    fits = {name: scipy.stats.linregress(rounds, value) for name, value in (("rss", rss), ("rest", rss - data))}
    result = {
        "rounds": len(records) - 2,
        "rss_mb_after_first": float(rss[0]),
        "rss_mb_last": float(rss[-1]),
        "data_mb_after_first": float(data[0]),
        "data_mb_last": float(data[-1]),
        "ledger_rows_last": int(rows[-1]),
        **{f"{name}_mb_per_round": float(fit.slope) for name, fit in fits.items()},
        **{f"{name}_mb_per_round_error": float(fit.stderr) for name, fit in fits.items()},
        "records": records,
    }
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n")
    print({key: value for key, value in result.items() if key != "records"})


if __name__ == "__main__":
    main()
