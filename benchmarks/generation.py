"""Configurations a second on one core, with and without their exact density, for the network of the default options.

    python benchmarks/generation.py [SYSTEM_FOLDER]

The weights do not matter for the speed, so the network is not trained. `autodiff` gets the same divergence from
automatic differentiation, one pass a coordinate (torch.func); it is what the closed form of the trace replaces.
"""

from __future__ import annotations

import json
import platform as host
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from openmm_sgm.campaign import Campaign
from openmm_sgm.diffusion import integrate, karras_grid, sample_with_density
from openmm_sgm.explore import explore
from openmm_sgm.generator import BATCH, Generator
from openmm_sgm.options import SamplerOptions
from openmm_sgm.system_file import load_system
from openmm_sgm.training import TrainingOptions

ROOT = Path(__file__).parents[1]
STEPS = (8, 10, 15)
TURNS = 7


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    molecule = load_system(folder)
    options = SamplerOptions(training=TrainingOptions(steps=2), exploration_training_steps=1)
    campaign = Campaign(molecule, options, np.random.SeedSequence(1), lambda line: None)
    explore(campaign, 20_000)
    campaign.train()
    assert campaign.generator is not None
    generator, label = campaign.generator, campaign.grid.centers[[campaign.grid.nearest(campaign.chain[0].cvs[0])]]
    rows = [measure(folder.name, generator.with_steps(steps), label) for steps in STEPS]
    output = ROOT / "benchmarks" / "results" / "generation.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


def measure(name: str, generator: Generator, label: np.ndarray) -> dict[str, object]:
    return {
        "system": name,
        "coordinates": generator.representation.n_linear + generator.representation.n_rotors,
        "torch": torch.__version__,
        "host": host.machine(),
        "batch": BATCH,
        "steps": generator.steps,
        "network_evaluations": 4 * generator.steps,
        "with_density_per_second": rate(lambda: generator.sample(label, np.array([BATCH]), 1)),
        "without_density_per_second": rate(lambda: without_density(generator, label)),
        "autodiff_per_second": rate(lambda: autodiff(generator, label), batch=32, turns=2),
    }


def without_density(generator: Generator, label: np.ndarray) -> None:
    features = generator.network_features(torch.as_tensor(label))
    source = torch.Generator().manual_seed(1)
    label_of = torch.zeros(BATCH, dtype=torch.long)
    z, _ = sample_with_density(generator.model, features, label_of, generator.steps, source, with_density=False)
    generator.representation.decode(z.double(), torch.as_tensor(np.repeat(label, BATCH, 0)))


def autodiff(generator: Generator, label: np.ndarray) -> None:
    """Integrate 32 samples with the divergence by one vector–Jacobian product a coordinate."""
    features = generator.network_features(torch.as_tensor(label))
    model, n = generator.model, 32
    z = torch.randn(n, generator.representation.n_linear + generator.representation.n_rotors)
    for sigma in karras_grid(generator.steps)[:-1].float():
        for _ in range(4):
            rows = model.network.conditioning(torch.log(sigma).expand(1), features)
            conditioning = type(rows)(*(part.expand(n, -1) for part in rows))
            inputs = z.clone().requires_grad_(True)
            score = model.score(inputs, sigma, conditioning)
            divergence = torch.zeros(n)
            for k in range(z.shape[1]):
                divergence += torch.autograd.grad(score[:, k].sum(), inputs, retain_graph=True)[0][:, k]
    integrate(model, z, features, torch.zeros(n, dtype=torch.long), karras_grid(1), with_density=False)


def rate(run: Callable[[], object], batch: int = BATCH, turns: int = TURNS) -> float:
    """Return samples a second: the median over turns, after one for warming up."""
    run()
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return round(batch / float(np.median(seconds)), 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "systems" / "alanine_dipeptide_vacuum")
