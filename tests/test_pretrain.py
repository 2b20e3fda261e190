"""Training on unbiased frames: whose law the labelled rows and the generator have, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
from analytic import ANGLE_CONSTANT, BOND_CONSTANT, BOND_NM, TEMPERATURE_K, triatomic, triatomic_simulation
from test_cli import check_refused, quick_options, write_system
from test_sampler import SMALL, z_scores
from test_training import rejection

import openmm_sgm as sgm
from openmm_sgm.cli import main
from openmm_sgm.explore import GENERATED_START
from openmm_sgm.pretrain import ENOUGH, covered_range, draw_labelled_rows, effective_frames
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import InputError, thermal_energy
from openmm_sgm.windows import WindowGrid

KT = thermal_energy(TEMPERATURE_K)
OPTIONS = sgm.SamplerOptions(
    training=sgm.TrainingOptions(steps=900, batch_size=256, check_every=100, rows=12_000),
    network=sgm.NetworkOptions(width=32, hidden=48, conditioning=24),
)


def unbiased(n: int, seed: int) -> np.ndarray:
    """Return exact draws of exp(−βU) of the three-atom molecule, shape (n, 3, 3), nm."""
    rng = np.random.default_rng(seed)
    width = np.sqrt(KT / BOND_CONSTANT)
    a, b = (rejection(lambda k: rng.normal(BOND_NM, width, k), lambda r: (r / 0.3) ** 2, n, rng) for _ in range(2))
    theta = rejection(lambda k: rng.normal(1.9, np.sqrt(KT / ANGLE_CONSTANT), k), np.sin, n, rng)
    zero = np.zeros(n)
    ends = [np.stack([a, zero, zero], -1), np.stack([b * np.cos(theta), b * np.sin(theta), zero], -1)]
    return np.stack([ends[0], np.zeros((n, 3)), ends[1]], axis=1)


def plain(positions: np.ndarray, **more: Any) -> sgm.RecordedFrames:
    n = len(positions)
    return sgm.RecordedFrames(positions, None, None, np.zeros((n, 0)), np.arange(n), **more)


def umbrella_law(label: float, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """Return r and the cumulative law of the distance 0–1 under an umbrella: r² exp(−β(U + bias))."""
    r = np.linspace(0.02, 0.3, 2001)
    energy = 0.5 * BOND_CONSTANT * (r - BOND_NM) ** 2 + 0.5 * kappa * (r - label) ** 2
    density = r**2 * np.exp(-(energy - energy.min()) / KT)
    cumulative = np.cumsum(density) - 0.5 * density
    return r, cumulative / cumulative[-1]


def moments(label: float, kappa: float) -> tuple[float, float]:
    r, cumulative = umbrella_law(label, kappa)
    p = np.gradient(cumulative)
    mean = float((p * r).sum())
    return mean, float(np.sqrt((p * (r - mean) ** 2).sum()))


@pytest.fixture(scope="module")
def molecule() -> MolecularSystem:
    return triatomic()


@pytest.fixture(scope="module")
def grid(molecule: MolecularSystem) -> WindowGrid:
    return WindowGrid.over(molecule.cvs, TEMPERATURE_K)


@pytest.fixture(scope="module")
def trained(molecule: MolecularSystem) -> sgm.Pretrained:
    """Trained on 4,000 independent unbiased frames, without recorded forces."""
    return sgm.train_from_frames(molecule, plain(unbiased(4000, 1)), options=OPTIONS, seed=2)


# the law of the labelled rows


def deviations(molecule: MolecularSystem, grid: WindowGrid, assumed: WindowGrid) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows with the umbrellas of `assumed`; return z-scores of mean and variance of F(r|c), by window of `grid`.

    F is the exact cumulative law under the umbrellas of `grid` at the row's own label: F(r|c) is uniform on [0, 1].
    Standard errors are of the rows and of the frames that they are drawn from.
    """
    cvs = molecule.evaluate_cvs(unbiased(20_000, 4))
    effective = effective_frames(cvs, grid)
    covered = np.flatnonzero(effective >= 200)
    rows, labels = draw_labelled_rows(cvs, assumed, covered, 3000, np.random.default_rng(3))
    window = np.array([grid.nearest(label) for label in labels])
    counts = np.bincount(window, minlength=len(effective))[covered]
    assert len(covered) >= 8
    assert np.abs(counts - counts.mean()).max() < 4.5 * np.sqrt(counts.mean())  # every window has the same share
    pairs = list(zip(rows, labels, strict=True))
    u = np.array([np.interp(cvs[row, 0], *umbrella_law(label, grid.force_constants[0])) for row, (label,) in pairs])
    mean, variance = [], []
    for k, n in zip(covered, counts, strict=True):
        own = u[window == k]
        share = 1 / n + 1 / effective[k]
        mean.append((own.mean() - 0.5) / np.sqrt(share / 12))
        variance.append((np.mean((own - 0.5) ** 2) - 1 / 12) / np.sqrt(share / 180))
    return np.array(mean), np.array(variance)


def test_rows_at_a_label_have_the_law_of_its_umbrella(molecule: MolecularSystem, grid: WindowGrid) -> None:
    mean, variance = deviations(molecule, grid, grid)
    assert max(np.abs(mean).max(), np.abs(variance).max()) < 4
    assert np.sqrt(np.mean([mean**2, variance**2])) < 1.6


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_label_noise_of_another_width_is_noticed(molecule: MolecularSystem, grid: WindowGrid, factor: float) -> None:
    """The test above, broken on purpose: labels scatter about ξ by another width than √(kT/κ)."""
    wrong = replace(grid, force_constants=factor * grid.force_constants)
    _, variance = deviations(molecule, grid, wrong)
    assert np.sqrt(np.mean(variance**2)) > 4


def test_labels_of_two_torsions_scatter_by_the_umbrella_over_the_period() -> None:
    """Of frames uniform on the torus, ξ − c is N(0, kT/κ) in each torsion, and c is uniform.

    Broken on purpose: fails where the difference is not wrapped, and where frames are cut off one width from a label.
    """
    torsions = (sgm.Torsion("phi", (0, 1, 2, 3)), sgm.Torsion("psi", (1, 2, 3, 4)))
    grid = WindowGrid.over(torsions, TEMPERATURE_K)
    rng = np.random.default_rng(6)
    frames, n = 40_000, 4000
    cvs = rng.uniform(-np.pi, np.pi, (frames, 2))
    covered = np.flatnonzero(effective_frames(cvs, grid) >= ENOUGH)
    assert len(covered) == 324
    rows, labels = draw_labelled_rows(cvs, grid, covered, n, rng)
    scaled = grid.difference(cvs[rows], labels) / np.sqrt(KT / grid.force_constants)
    error = np.sqrt(1 / n + 1 / frames)
    assert np.abs(scaled.mean(axis=0)).max() < 4 * error
    assert np.abs((scaled**2).mean(axis=0) - 1).max() < 4 * np.sqrt(2) * error
    assert abs((scaled[:, 0] * scaled[:, 1]).mean()) < 4 * error
    edge = np.abs(labels) > np.pi - np.sqrt(KT / grid.force_constants)
    outward = (scaled * np.sign(labels))[edge]
    assert abs(outward.mean()) < 4 * np.sqrt(1 / len(outward) + 1 / edge.mean() / frames)
    harmonics = np.exp(1j * labels).mean(axis=0)
    assert np.abs(harmonics).max() < 4 / np.sqrt(n)


# the generator


def test_generated_configurations_have_the_law_of_their_umbrella(
    trained: sgm.Pretrained, molecule: MolecularSystem, grid: WindowGrid
) -> None:
    """Raw: mean and variance of the distance at labels that are no window centres, against the closed form.

    Broken on purpose: with labels drawn by half the force constant, z-scores reach 4.6, and 2.9 in the RMS.
    """
    n, kappa = 300, grid.force_constants[0]
    labels = np.linspace(0.12, 0.18, 6)[:, None]
    samples = trained.generator.sample(labels, np.full(6, n), seed=5)
    assert samples.valid.all()
    r = np.linalg.norm(samples.positions[:, 0] - samples.positions[:, 1], axis=1).reshape(6, n)
    exact = np.array([moments(label, kappa) for (label,) in labels])
    mean = (r.mean(axis=1) - exact[:, 0]) / (exact[:, 1] / np.sqrt(n))
    variance = (((r - exact[:, :1]) ** 2).mean(axis=1) / exact[:, 1] ** 2 - 1) / np.sqrt(2 / n)
    assert max(np.abs(mean).max(), np.abs(variance).max()) < 4
    assert np.sqrt(np.mean([mean**2, variance**2])) < 1.8

    context = openmm.Context(
        molecule.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    energies = np.empty(6 * n)
    for k, x in enumerate(samples.positions):
        context.setPositions(x)
        energies[k] = context.getState(energy=True).getPotentialEnergy()._value
    points = np.repeat(labels, n, axis=0)
    log_weights = -energies / KT - grid.reduced_bias(r.reshape(-1, 1), points) - samples.log_density
    w = np.exp(log_weights.reshape(6, n) - log_weights.reshape(6, n).max(axis=1, keepdims=True))
    w /= w.sum(axis=1, keepdims=True)
    assert (1 / (w**2).sum(axis=1) / n).min() > 0.8
    weighted = (w * r).sum(axis=1)
    error = np.sqrt((w**2 * (r - weighted[:, None]) ** 2).sum(axis=1))
    assert np.abs((weighted - exact[:, 0]) / error).max() < 4


def test_what_was_used_and_covered_is_told(trained: sgm.Pretrained, molecule: MolecularSystem) -> None:
    assert trained.frames == 4000
    assert trained.rows <= OPTIONS.training.rows
    assert 4000 * 0.5 < trained.force_evaluations <= 4004  # frames that were drawn, and four for equivalent atoms
    assert trained.covered.sum() >= 8
    assert (trained.effective[trained.covered] >= ENOUGH).all()
    assert trained.coverage.startswith(f"the frames cover {trained.covered.sum()} of 10 windows: r from 0.")
    assert min(loss for _, loss in trained.held_out) < 0.8 * trained.held_out[0][1]
    assert trained.left_out == ()


def test_training_is_the_same_with_the_same_seed(molecule: MolecularSystem) -> None:
    frames = plain(unbiased(500, 1))
    options = replace(OPTIONS, training=replace(OPTIONS.training, steps=30, rows=1000))
    a, b, c = (sgm.train_from_frames(molecule, frames, options=options, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_allclose(a.held_out, b.held_out, rtol=1e-5)
    assert not np.allclose(a.held_out, c.held_out)


@pytest.mark.parametrize(
    ("here", "period", "expected"),
    [
        ([1, 1, 1, 1], 4.0, [(-2.0, 2.0)]),
        ([1, 0, 0, 1], 4.0, [(1.0, 3.0)]),
        ([1, 0, 0, 1], None, [(-2.0, -1.0), (1.0, 2.0)]),
        ([0, 1, 1, 0], 4.0, [(-1.0, 1.0)]),
        ([1, 0, 1, 0], 4.0, [(0.0, 1.0), (2.0, 3.0)]),
    ],
)
def test_stretches_of_covered_windows(here: list[int], period: float | None, expected: list[Any]) -> None:
    found = covered_range(np.array([-1.5, -0.5, 0.5, 1.5]), np.array(here, dtype=bool), period)
    assert sorted((low % 4 if period else low, high - low) for low, high in found) == sorted(
        (low % 4 if period else low, high - low) for low, high in expected
    )


# a run that begins with it


def test_a_run_begins_with_the_generator(trained: sgm.Pretrained, molecule: MolecularSystem) -> None:
    """Windows are opened by trial from the first, which without it takes 30 windows, and the result is as right."""
    sampler = sgm.ScoreSampler(molecule, seed=1, workers=0, options=SMALL, generator=trained.generator)
    sampler.run(force_evaluations=20_000)
    assert sampler.campaign is not None
    origins = [walker.started_from for walker in sampler.campaign.walkers.values()]
    assert origins.count(GENERATED_START) >= 7
    assert sampler.campaign.ledger.rows[0].purpose == "trial"
    z = z_scores(sampler.surface())
    assert np.abs(z).max() < 4.5
    assert np.sqrt(np.mean(z**2)) < 2


def test_a_generator_of_something_else_is_refused(trained: sgm.Pretrained) -> None:
    def begin(molecule: MolecularSystem, **options: Any) -> None:
        sgm.ScoreSampler(molecule, workers=0, options=sgm.SamplerOptions(**options), generator=trained.generator)

    begin(triatomic())
    with pytest.raises(InputError, match=r"another molecule.*masses differ"):
        begin(triatomic(masses=(12.0, 12.0, 13.0)))
    with pytest.raises(InputError, match="bonds, constraints or the torsions"):
        begin(triatomic(constrained=True, cvs=(sgm.Distance("d", (0, 2), 0.1, 0.3, windows=10),)))
    with pytest.raises(InputError, match="other labels"):
        begin(triatomic(cvs=(sgm.Distance("r", (0, 1), 0.08, 0.2, windows=10),)))
    with pytest.raises(InputError, match="other labels"):
        begin(triatomic(), ladder=(400.0,))


# what is refused


def test_recorded_forces_are_used_and_those_of_a_biased_simulation_refused(
    molecule: MolecularSystem, tmp_path: Path
) -> None:
    options = replace(OPTIONS, training=replace(OPTIONS.training, steps=30, rows=1000))
    for name, bias in (("plain", 0.0), ("biased", 5.0)):
        simulation = triatomic_simulation()
        if bias:
            umbrella = openmm.HarmonicBondForce()
            umbrella.addBond(0, 1, 0.2, 500.0)
            simulation.system.addForce(umbrella)
            simulation.context.reinitialize(preserveState=True)
        simulation.reporters.append(sgm.FrameReporter(tmp_path / name, 20, molecule.cvs))
        simulation.step(8000)
        simulation.reporters[0].close()
    result = sgm.train_from_frames(molecule, sgm.load_frames(tmp_path / "plain"), options=options)
    assert result.force_evaluations == 4 + 8
    with pytest.raises(InputError, match=r"recorded forces differ .* biased"):
        sgm.train_from_frames(molecule, sgm.load_frames(tmp_path / "biased"), options=options)


def test_frames_that_do_not_fit_are_refused(molecule: MolecularSystem) -> None:
    x = unbiased(300, 1)
    constrained = triatomic(constrained=True, cvs=(sgm.Angle("a", (0, 1, 2), 0.5, 3.0),))
    far = triatomic(cvs=(sgm.Distance("r", (0, 1), 0.145, 0.155),))
    cases: list[tuple[MolecularSystem, sgm.RecordedFrames, str]] = [
        (molecule, plain(x[:0]), "no frames"),
        (molecule, plain(x[:, :2]), "frames have 2 atoms and triatomic 3"),
        (molecule, plain(np.where(np.arange(300)[:, None, None] == 7, np.nan, x)), "not finite"),
        (molecule, plain(x, temperature_k=310.0), "are of 310 K, and triatomic of 300 K"),
        (molecule, plain(x[:, [0, 1, 2]] * 3), "atoms 0 and 1 are bonded, and up to"),
        (constrained, plain(x), "constrained in triatomic and not in the frames"),
        (far, plain(x[np.linalg.norm(x[:, 0] - x[:, 1], axis=1) > 0.18]), "cover no window.*range is 0.145 nm"),
        (molecule, plain(x[:15]), r"cover no window, at best one with .* of the 20 effective"),
    ]
    for system, frames, message in cases:
        with pytest.raises(InputError, match=message):
            sgm.train_from_frames(system, frames)
    with pytest.raises(InputError, match="leave the ladder out"):
        sgm.train_from_frames(molecule, plain(x), options=sgm.SamplerOptions(ladder=(400.0,)))


# the command line


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A system folder, and a trajectory file and recorded frames of it."""
    base = tmp_path_factory.mktemp("tiny")
    folder = write_system(base / "system")
    molecule = sgm.load_system(folder)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 10.0, 0.001)
    integrator.setRandomNumberSeed(2)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = openmm.app.Simulation(molecule.topology, molecule.system, integrator, platform)
    simulation.context.setPositions(molecule.positions)
    simulation.reporters.append(sgm.FrameReporter(base / "frames", 10, molecule.cvs))
    simulation.reporters.append(openmm.app.DCDReporter(str(base / "md.dcd"), 10))
    simulation.step(8000)
    del simulation.reporters[:]
    return folder, base / "md.dcd", base / "frames"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmm_sgm.pretrain.SamplerOptions", quick_options)


@pytest.mark.parametrize("kind", ["--trajectory", "--frames"])
def test_train_from_the_command_line(
    kind: str, tiny: tuple[Path, Path, Path], tmp_path: Path, quick: None, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, trajectory, frames = tiny
    data = str(trajectory if kind == "--trajectory" else frames)
    output = tmp_path / "out"
    assert main(["train", str(folder), kind, data, "--output", str(output), "--seed", "3"]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == str(output / "generator")
    assert "the frames cover" in err
    content = json.loads((output / "train.json").read_text())
    assert (content["frames"], content["seed"], len(content["windows"])) == (800, 3, 7)
    assert content["coverage"] in err
    assert content["force_evaluations"] == (12 if kind == "--frames" else content["force_evaluations"]) > 4
    assert len(sgm.Generator.load(output / "generator").sample(np.array([[0.2]]), np.array([3]), 1).positions) == 3
    check_refused(capfd, ["train", str(folder), kind, data, "--output", str(output)], "not an empty folder", output)


def test_run_with_a_generator_from_the_command_line(
    tiny: tuple[Path, Path, Path], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, trajectory, _ = tiny
    monkeypatch.setattr("openmm_sgm.sampler.SamplerOptions", quick_options)
    monkeypatch.setattr("openmm_sgm.report.write_report", lambda folder: folder / "report.html")
    assert main(["train", str(folder), "--trajectory", str(trajectory), "--output", str(tmp_path / "pre")]) == 0
    arguments = ["run", str(folder), "--force-evaluations", "4000", "--workers", "0", "--output", str(tmp_path / "out")]
    check_refused(
        capfd,
        [*arguments, "--generator", str(tmp_path / "pre")],
        "holds no generator that can be read",
        tmp_path / "out",
    )
    (tmp_path / "bad").mkdir()
    for name in ("generator.json", "generator.safetensors"):
        (tmp_path / "bad" / name).write_bytes((tmp_path / "pre" / "generator" / name).read_bytes()[:-200])
    check_refused(
        capfd,
        [*arguments, "--generator", str(tmp_path / "bad")],
        "holds no generator that can be read",
        tmp_path / "out",
    )
    assert main([*arguments, "--generator", str(tmp_path / "pre" / "generator")]) == 0
    with (tmp_path / "out" / "ledger.csv").open() as file:
        assert next(csv.DictReader(file))["purpose"] == "trial"


def test_bad_input_to_train(
    tiny: tuple[Path, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None
) -> None:
    folder, trajectory, frames = tiny
    output = tmp_path / "out"
    molecule = sgm.load_system(folder)
    other = mdtraj.load(str(trajectory), top=molecule.mdtraj_topology).atom_slice([0, 1, 2])
    other.save_dcd(str(tmp_path / "other.dcd"))
    (tmp_path / "words.xtc").write_text("no trajectory")
    (tmp_path / "words.txt").write_text("no trajectory")
    cases = [
        (["--trajectory", str(tmp_path / "other.dcd")], "does not have the 4 atoms of tiny"),
        (["--trajectory", str(tmp_path / "none.dcd")], "none.dcd cannot be read by mdtraj"),
        (["--trajectory", str(tmp_path / "words.xtc")], "words.xtc cannot be read by mdtraj"),
        (["--trajectory", str(tmp_path / "words.txt")], "words.txt cannot be read by mdtraj"),
        (["--frames", str(tmp_path)], "holds no frames.json"),
        (["--frames", str(frames), "--seed", "-1"], "seed must be a whole number, 0 or more"),
    ]
    for more, message in cases:
        arguments = ["train", str(folder), *more, "--output", str(output)]
        capfd.readouterr()
        assert main(arguments) == 2
        err = capfd.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1, err
        assert not output.exists()
    (tmp_path / "file").write_text("mine")
    below = ["train", str(folder), "--frames", str(frames), "--output", str(tmp_path / "file" / "below")]
    check_refused(capfd, below, "cannot make the folder", tmp_path / "file")
