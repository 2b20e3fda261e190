"""Speed of molecular dynamics under the umbrella of a learned CV, against that of a torsion, measured side by side.

    python benchmarks/learned_cv.py [SYSTEM_FOLDER ...]

The features are the distances of all pairs of heavy atoms; the diffusion map is fitted to frames at 600 K. Turns of all
biases alternate, so that a busy machine slows them alike, and a ratio is the median over turns of the learned CV's
speed over the torsion's in the same turn. Processor time is counted, of one thread on the Reference platform.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import openmm
import torch
from threadpoolctl import threadpool_limits

from openmm_sgm.cv_functions import MLP, LinearProjection
from openmm_sgm.cvs import CollectiveVariable
from openmm_sgm.diffusion_maps import fit_diffusion_map
from openmm_sgm.features import PairDistances
from openmm_sgm.learned import TorchCV, diffusion_cv, distil
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "systems" / "alanine_dipeptide_vacuum", ROOT / "systems" / "alanine_dipeptide_obc")
LANDMARKS = (100, 300, 1000)
HIDDEN = (4, 6, 16)
FRAMES = 3000
FRAME_INTERVAL = 50
HOT_K = 600.0
FORCE_CONSTANT = 20.0
TURNS = 15
TURN_STEPS = 1000


def main(folders: list[Path]) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = [row for folder in folders for row in compare(load_system(folder), folder.name)]
    output = ROOT / "benchmarks" / "results" / "learned_cv.json"
    output.write_text(json.dumps(rows, indent=1) + "\n")


def compare(molecule: MolecularSystem, system: str) -> list[dict[str, float | str]]:
    """Return a row for each CV: its name, steps a second, and their ratio to the torsion's."""
    heavy = np.flatnonzero(molecule.masses > 2).tolist()
    pairs = PairDistances(tuple(itertools.combinations(heavy, 2)))
    features = pairs(torch.as_tensor(hot_frames(molecule))).numpy()
    generator = np.random.default_rng(1)
    torch.manual_seed(1)
    cvs: dict[str, CollectiveVariable] = {"torsion": molecule.cvs[0]}
    for m in LANDMARKS:
        found = fit_diffusion_map(features, n_coordinates=2, max_landmarks=m, seed=1)
        print(f"{system}: {m} landmarks, bandwidth {found.bandwidth:.4g} nm², eigenvalues {found.eigenvalues}")
        cvs[f"diffusion map, {m} landmarks"] = diffusion_cv("psi1", found, 0, pairs)
    for hidden in HIDDEN:
        small = distil(diffusion_cv("psi1", found, 0, pairs), features, hidden=hidden)
        print(f"{system}: {hidden} units, R² {small.r_squared:.5f}, rank correlation {small.rank_correlation:.4f}")
        cvs[f"distilled, {hidden} units"] = small.cv
    linear = LinearProjection(features.mean(axis=0), generator.normal(size=len(pairs.pairs)))
    cvs["linear (OpenMM force)"] = TorchCV("linear", linear, pairs, -50, 50)
    cvs["network 45-32-32-1 (torch)"] = TorchCV("network", MLP((pairs.n_features, 32, 32, 1)), pairs, -50, 50)
    contexts = {name: biased_context(molecule, cv) for name, cv in cvs.items()}
    speeds: dict[str, list[float]] = {name: [] for name in cvs}
    for _ in range(TURNS):
        for name, context in contexts.items():
            start = time.process_time()
            context.getIntegrator().step(TURN_STEPS)
            speeds[name].append(TURN_STEPS / (time.process_time() - start))
    rows: list[dict[str, float | str]] = []
    for name, values in speeds.items():
        ratio = float(np.median(np.array(values) / np.array(speeds["torsion"])))
        rows.append({"system": system, "cv": name, "steps_per_second": float(np.median(values)), "ratio": ratio})
        print(f"{system:28} {name:30} {np.median(values):8.0f} steps/s  {ratio:.3f}", flush=True)
    return rows


def hot_frames(molecule: MolecularSystem) -> np.ndarray:
    """Return frames at `HOT_K`, shape (FRAMES, n_atoms, 3), nm."""
    context = new_context(molecule, molecule.system, HOT_K)
    frames = []
    for _ in range(FRAMES):
        context.getIntegrator().step(FRAME_INTERVAL)
        frames.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
    return np.array(frames)


def biased_context(molecule: MolecularSystem, cv: CollectiveVariable) -> openmm.Context:
    """Return a context under the umbrella of `cv` about its value at the start."""
    system = copy.deepcopy(molecule.system)
    system.addForce(cv.bias_force("bias"))
    context = new_context(molecule, system, molecule.temperature_k)
    positions = molecule.positions - molecule.positions.mean(axis=0)
    context.setParameter("bias_center", float(cv.evaluate(molecule.trajectory(positions))[0]))
    context.setParameter("bias_force_constant", FORCE_CONSTANT)
    context.getIntegrator().step(TURN_STEPS)
    return context


def new_context(molecule: MolecularSystem, system: openmm.System, temperature_k: float) -> openmm.Context:
    integrator = openmm.LangevinMiddleIntegrator(temperature_k, molecule.friction_per_ps, molecule.time_step_fs / 1000)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(copy.deepcopy(system), integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(molecule.positions)
    context.setVelocitiesToTemperature(temperature_k, 1)
    return context


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]] or list(FOLDERS))
