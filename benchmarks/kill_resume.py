"""Kill a run again and again and let it go on: is what comes out the same as without?

    python benchmarks/kill_resume.py [--kills 30] [--output benchmarks/results/kill_resume.json]

One run of `systems/three_atoms` with one worker and a fixed seed is left alone. Of another, the whole process group is
killed (SIGKILL, the worker too) at a random moment of what the first one took, and the run is resumed; every third one
is killed once more on its way. Each must end with exit code 0 and with the same surface, ledger, samples and weights,
bit for bit, and the same frames in its last state.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mdtraj
import numpy as np

from openmm_sgm.journal import Journal
from openmm_sgm.runfolder import save_state
from openmm_sgm.sampler import ScoreSampler
from openmm_sgm.system_file import load_system

ROOT = Path(__file__).resolve().parents[1]
FILES = ("surface.csv", "ledger.csv", "weights.csv")
RUN = """
import functools
import sys
import matplotlib.figure
import openmm_sgm.journal as journal
import openmm_sgm.options as options
import openmm_sgm.report
from openmm_sgm.cli import main
from openmm_sgm.networks import NetworkOptions
from openmm_sgm.training import Checkpoint, TrainingOptions

journal.Checkpoint = functools.partial(Checkpoint, seconds=0.2)  # as in a training of minutes
matplotlib.figure.Figure.savefig = lambda figure, file, **options: file.write(b"")  # most of a tiny run's time
Full = options.SamplerOptions
options.SamplerOptions = lambda ladder: Full(
    ladder=ladder,
    training=TrainingOptions(steps=300, rows=2000, batch_size=128),
    exploration_training_steps=60,
    network=NetworkOptions(width=32, hidden=32, conditioning=16),
)
sys.exit(main(sys.argv[1:]))
"""


def start(folder: Path, evaluations: int, resume: bool) -> subprocess.Popen[bytes]:
    """Start the run in a process group of its own."""
    arguments = ["run", str(ROOT / "systems" / "three_atoms"), "--output", str(folder), "--seed", "3", "--workers", "1"]
    arguments += ["--ladder", "400", "--force-evaluations", str(evaluations), *(["--resume"] if resume else [])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=(folder.parent / f"{folder.name}.log").open("ab"),
        env=environment,
        start_new_session=True,
    )


def at_work(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until the process holds the folder's lock, or has ended: before that there is nothing to lose."""
    while process.poll() is None:
        try:
            if json.loads((folder / "lock").read_text())["pid"] == process.pid:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.005)


def killed_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill the process's whole group after some seconds; return False where it had ended by itself."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def fingerprint(folder: Path) -> dict[str, str]:
    """Return digests of the results, the generator and the frames of the last state."""
    paths = [folder / name for name in FILES]
    paths += sorted((folder / "generator").iterdir())
    paths += sorted((folder / "state").rglob("*.npz"))
    found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    samples = mdtraj.load(folder / "samples.dcd", top=folder / "topology.pdb")  # the file itself holds the time of day
    return found | {"samples.dcd": hashlib.sha256(samples.xyz.tobytes()).hexdigest()}


def ledger_is_whole(folder: Path) -> bool:
    """Return whether the rows count from 0 without a gap or a double."""
    rows = (folder / "ledger.csv").read_text().splitlines()[1:]
    return [int(row.split(",")[0]) for row in rows] == list(range(len(rows)))


def stage(folder: Path) -> str:
    """Return where a killed run stood, as `status` has it."""
    try:
        status = json.loads((folder / "status.json").read_text())
    except OSError:
        return "before the start"
    journal = folder / "journal"
    kept = len(list(journal.iterdir())) if journal.is_dir() else 0
    return f"{status.get('phase')}, {kept} kept"


def trial(folder: Path, evaluations: int, moments: list[float]) -> dict[str, object]:
    """Run, kill at the moments, resume to the end, and return what became of it."""
    stages: list[str] = []
    process = start(folder, evaluations, resume=False)
    for moment in moments:
        at_work(process, folder)
        if not killed_after(process, moment):
            break
        stages.append(stage(folder))
        process = start(folder, evaluations, resume=(folder / "lock").exists() and (folder / "status.json").exists())
    code = process.wait(600)
    return {"kills_s": [round(m, 2) for m in moments], "stages": stages, "exit_code": code}


def cost_of_journal(evaluations: int) -> dict[str, object]:
    """Return the processor seconds of one run in this process with and without a journal, and what is written."""
    molecule = load_system(ROOT / "systems" / "alanine_dipeptide_vacuum")
    found: dict[str, object] = {"system": molecule.name, "force_evaluations": evaluations}
    with tempfile.TemporaryDirectory(prefix="journal_") as base:
        for name in ("without", "with"):
            folder, sizes = Path(base) / name, []
            folder.mkdir()
            journal = Journal(folder / "journal") if name == "with" else None

            def keep(sampler: ScoreSampler, folder: Path = folder, journal: Journal | None = journal) -> None:
                save_state(folder, sampler)
                if journal:
                    sizes.append(sum(path.stat().st_size for path in journal.folder.glob("*")))  # noqa: B023
                    journal.clear()

            sampler = ScoreSampler(molecule, seed=1, workers=0, on_round=keep, journal=journal)
            started = time.process_time()
            sampler.run(evaluations)
            found[f"cpu_seconds_{name}"] = round(time.process_time() - started, 2)
            if journal:
                found["results_kept"], found["megabytes_written"] = journal.kept, round(journal.bytes_written / 1e6, 1)
                found["largest_folder_megabytes"] = round(max(sizes) / 1e6, 1)
                size = sum(path.stat().st_size for path in (folder / "state").rglob("*") if path.is_file())
                found["last_state_megabytes"] = round(size / 1e6, 1)
    return found


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--evaluations", type=int, default=8000)
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--cost", type=int, default=30_000, help="force evaluations of a run with and without a journal"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory(prefix="kill_resume_") as base:
        alone = Path(base) / "alone"
        process = start(alone, options.evaluations, resume=False)
        at_work(process, alone)
        started = time.perf_counter()
        code = process.wait(600)
        seconds = time.perf_counter() - started
        assert code == 0, (Path(base) / "alone.log").read_text()
        expected = fingerprint(alone)
        trials = []
        for number in range(options.kills):
            folder = Path(base) / f"run{number}"
            found: dict[str, object] = {}
            while not found.get("stages"):  # a run that ended before its moment was not killed
                shutil.rmtree(folder, ignore_errors=True)
                moments = [float(rng.uniform(0, 1.0) * seconds)]
                if number % 3 == 2:
                    moments.append(float(rng.uniform(0, 0.8) * seconds))
                found = trial(folder, options.evaluations, moments)
            if found["exit_code"] == 0:
                same = fingerprint(folder)
                found["different"] = sorted(k for k in expected if same.get(k) != expected[k])
                found["ledger_whole"] = ledger_is_whole(folder)
            else:
                found["log"] = (Path(base) / f"run{number}.log").read_text().splitlines()[-3:]
            print(number, found, flush=True)
            trials.append(found)
        result = {
            "system": "three_atoms, ladder 400 K, one worker",
            "force_evaluations": options.evaluations,
            "seconds_alone": round(seconds, 1),
            "trials": trials,
            "kills": sum(len(t["stages"]) for t in trials),  # type: ignore[misc, arg-type]
            "finished": sum(t["exit_code"] == 0 for t in trials),
            "identical": sum(t.get("different") == [] for t in trials),
            "ledgers_whole": sum(bool(t.get("ledger_whole")) for t in trials),
        }
    if options.cost:
        result["journal"] = cost_of_journal(options.cost)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print({key: value for key, value in result.items() if key != "trials"})


if __name__ == "__main__":
    main()
