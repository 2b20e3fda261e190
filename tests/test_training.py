"""Training: what rows are drawn, that the held-out loss falls, that forces help, and that the start can be warm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic import ANGLE_CONSTANT, BOND_CONSTANT, BOND_NM, TEMPERATURE_K, triatomic
from conftest import energy, forces, reference_context

from openmm_sgm.frames import MD, Frames, Selection
from openmm_sgm.generator import Generator
from openmm_sgm.networks import NetworkOptions
from openmm_sgm.system import MolecularSystem
from openmm_sgm.training import LevelFrames, TrainingOptions, TrainingSet, build_training_set, train
from openmm_sgm.units import thermal_energy
from openmm_sgm.windows import WindowGrid
from openmm_sgm.zmatrix import build_z_matrix

NETWORK = NetworkOptions(width=32, hidden=48, conditioning=24)
OPTIONS = TrainingOptions(steps=300, batch_size=128, check_every=50, patience=3)


def window_frames(molecule: MolecularSystem, grid: WindowGrid, n: int, rng: np.random.Generator) -> Frames:
    """Return exact draws of each window of the three-atom molecule: r², sin θ, and the umbrella by rejection."""
    kt = thermal_energy(TEMPERATURE_K)
    parts = []
    kappa = grid.force_constants[0]
    for window, (center,) in enumerate(grid.centers):
        stiff = BOND_CONSTANT + kappa
        mean = (BOND_CONSTANT * BOND_NM + kappa * center) / stiff
        r = rejection(lambda k, m=mean, s=stiff: rng.normal(m, np.sqrt(kt / s), k), lambda r: (r / 0.3) ** 2, n, rng)
        b = rejection(lambda k: rng.normal(BOND_NM, np.sqrt(kt / BOND_CONSTANT), k), lambda r: (r / 0.3) ** 2, n, rng)
        theta = rejection(lambda k: rng.normal(1.9, np.sqrt(kt / ANGLE_CONSTANT), k), np.sin, n, rng)
        zero = np.zeros(n)
        x = np.stack(
            [
                np.stack([r, zero, zero], -1),
                np.stack([zero, zero, zero], -1),
                np.stack([b * np.cos(theta), b * np.sin(theta), zero], -1),
            ],
            axis=1,
        )
        context = reference_context(molecule.system)
        parts.append(
            Frames(
                positions=x,
                forces=np.array([forces(context, one) for one in x]),
                energies=np.array([energy(context, one) for one in x]),
                cvs=molecule.evaluate_cvs(x),
                labels=np.repeat(grid.centers[[window]], n, 0),
                windows=np.full(n, window),
                log_weights=np.zeros(n),
                source=np.full(n, MD),
            )
        )
    return Frames.concatenate(parts)


def rejection(propose, weight, n: int, rng: np.random.Generator) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return `n` draws of a density proportional to propose × weight, weight at most one."""
    kept = np.zeros(0)
    while len(kept) < n:
        x = propose(4 * n)
        kept = np.concatenate([kept, x[rng.random(len(x)) < weight(x)]])
    return kept[:n]


@pytest.fixture(scope="module")
def few() -> tuple[MolecularSystem, WindowGrid, Frames]:
    molecule = triatomic()
    grid = WindowGrid.over(molecule.cvs, molecule.temperature_k)
    return molecule, grid, window_frames(molecule, grid, 40, np.random.default_rng(1))


def exact_free_energies(grid: WindowGrid) -> np.ndarray:
    """Return −log ∫ r² exp(−β(U + bias)) dr of each window, kT."""
    kt, r = thermal_energy(TEMPERATURE_K), np.linspace(0.02, 0.3, 4001)
    values = []
    for (center,) in grid.centers:
        energies = 0.5 * BOND_CONSTANT * (r - BOND_NM) ** 2 + 0.5 * grid.force_constants[0] * (r - center) ** 2
        values.append(-np.log((r**2 * np.exp(-energies / kt)).sum()))
    return np.array(values)


def training_set(few: tuple[MolecularSystem, WindowGrid, Frames], rows: int = 2000, seed: int = 2) -> TrainingSet:
    molecule, grid, frames = few
    return build_training_set(
        [LevelFrames(Selection.of([frames]), np.ones(len(frames)), exact_free_energies(grid), molecule, grid, rows)],
        z_matrix=build_z_matrix(3, molecule.bonds, molecule.masses, molecule.constraints, [None]),
        rotors=[],
        rng=np.random.default_rng(seed),
    )


def test_every_label_has_the_same_share_and_the_law_of_its_window(
    few: tuple[MolecularSystem, WindowGrid, Frames],
) -> None:
    """Labels are drawn anew for each row, by p(k|x): frames of a neighbour teach a window its own law."""
    _, grid, frames = few
    data = training_set(few, rows=20_000)
    cvs = frames.cvs[data.group, 0]
    # the features are one to one with the label: read it back
    features = data.representation.label_space.features(torch.as_tensor(grid.centers))[:, 1:].float().numpy()
    label = np.abs(data.label_features[:, None] - features[None]).sum(-1).argmin(1)
    counts = np.bincount(label, minlength=len(grid.centers))
    assert counts.min() > 0.6 * len(data.z) / len(grid.centers)
    assert (label != frames.windows[data.group]).mean() > 0.3
    kt = thermal_energy(TEMPERATURE_K)
    stiff = BOND_CONSTANT + grid.force_constants[0]
    for window in range(2, 8):
        own = cvs[label == window]
        mean = (BOND_CONSTANT * BOND_NM + grid.force_constants[0] * grid.centers[window, 0]) / stiff
        assert abs(own.mean() - mean - 2 * kt / stiff / mean) < 0.4 * np.sqrt(kt / stiff)


def test_held_out_loss_falls_and_the_best_weights_are_kept(few: tuple[MolecularSystem, WindowGrid, Frames]) -> None:
    result = train(training_set(few), options=OPTIONS, network_options=NETWORK, seed=3)
    steps, losses = zip(*result.held_out, strict=True)
    assert steps[0] == 0
    assert losses[-1] < 0.8 * losses[0]
    assert result.steps <= OPTIONS.steps
    assert min(losses) <= losses[-1]


def test_training_ends_early_when_nothing_is_gained(few: tuple[MolecularSystem, WindowGrid, Frames]) -> None:
    data = training_set(few, rows=400)
    options = replace(OPTIONS, steps=4000, learning_rate=0.02, patience=2)
    assert train(data, options=options, network_options=NETWORK, seed=3).steps < 4000


def test_copies_of_a_frame_never_stand_on_both_sides_of_the_hold_out(
    few: tuple[MolecularSystem, WindowGrid, Frames],
) -> None:
    """With gradients that are pure noise but alike within a frame, nothing can be learnt for held-out frames."""
    data = training_set(few, rows=3000)
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((data.group.max() + 1, data.z.shape[1])).astype(np.float32)
    options = replace(OPTIONS, steps=600, patience=100)
    apart = train(replace(data, gradients=noise[data.group]), options=options, network_options=NETWORK, seed=1)
    leaky = replace(data, gradients=noise[data.group], group=np.arange(len(data.group)))
    leaking = train(leaky, options=options, network_options=NETWORK, seed=1)
    assert leaking.held_out[-1][1] < apart.held_out[-1][1]


def spread_of_log_weights(generator: Generator, few: tuple[MolecularSystem, WindowGrid, Frames]) -> float:
    """Return the standard deviation of log[π_c/q] over fresh frames of the windows; 0 for the exact law."""
    molecule, grid, _ = few
    fresh = window_frames(molecule, grid, 60, np.random.default_rng(9))
    log_q = generator.log_density(fresh.positions, fresh.labels)
    log_pi = -fresh.energies / thermal_energy(TEMPERATURE_K) - grid.reduced_bias(fresh.cvs, fresh.labels)
    difference = log_pi - log_q
    centred = [difference[fresh.windows == w] - difference[fresh.windows == w].mean() for w in range(len(grid.centers))]
    return float(np.concatenate(centred).std())


def test_forces_make_few_frames_worth_more(few: tuple[MolecularSystem, WindowGrid, Frames]) -> None:
    data = training_set(few)
    spreads = {
        use: spread_of_log_weights(
            train(data, options=replace(OPTIONS, use_forces=use), network_options=NETWORK, seed=3).generator, few
        )
        for use in (True, False)
    }
    assert spreads[True] < 0.7 * spreads[False]


def test_a_warm_start_begins_where_the_last_training_ended(few: tuple[MolecularSystem, WindowGrid, Frames]) -> None:
    data = training_set(few)
    first = train(data, options=OPTIONS, network_options=NETWORK, seed=3)
    second = train(data, options=OPTIONS, network_options=NETWORK, seed=3, previous=first.generator)
    assert second.held_out[0][1] == pytest.approx(min(loss for _, loss in first.held_out), rel=1e-3)


def test_training_is_deterministic(few: tuple[MolecularSystem, WindowGrid, Frames]) -> None:
    runs = [train(training_set(few), options=OPTIONS, network_options=NETWORK, seed=4) for _ in range(2)]
    np.testing.assert_allclose(runs[0].held_out, runs[1].held_out, rtol=1e-5)
