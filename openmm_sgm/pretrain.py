"""A generator from frames that a user already has: plain, unbiased dynamics, recorded or in trajectory files."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mdtraj
import numpy as np

from .campaign import Campaign
from .cvs import CollectiveVariable
from .executors import one_thread
from .frames import MD, Frames, Selection
from .generator import Generator
from .options import SamplerOptions
from .reporter import RecordedFrames
from .runfolder import plain, versions
from .simulate import evaluate
from .status import write_json
from .symmetry import threefold_rotors
from .system import MolecularSystem
from .training import LevelFrames, build_training_set, train
from .units import InputError, one_line
from .windows import WindowGrid

__all__ = [
    "Pretrained",
    "covered_range",
    "draw_labelled_rows",
    "effective_frames",
    "read_trajectories",
    "train_from_frames",
    "write_pretrained",
]

ENOUGH = 20.0
"""Effective frames under an umbrella from which its law is taken to be known."""
NEAR, REACH = 3.0, 6.0
"""Widths of an umbrella within which frames count for `ENOUGH`, and beyond which none is drawn for a label."""
CHUNK = 2_000_000
BLOCKS = 200
"""Stretches of time of which whole ones are held out: neighbours in time are copies of each other."""
COMPARED = 8
"""Frames whose recorded forces are compared with the system's own."""
FORCE_TOLERANCE = 1e-3
"""Of their RMS; in single precision they are some ten times closer."""
BOND_TOLERANCE, STRETCH = 0.01, 2.0
"""Relative deviation of constrained bonds, and the largest length of a bond in units of that at the start."""
TEMPERATURE_TOLERANCE_K = 0.01


@dataclass(frozen=True)
class Pretrained:
    """What `train_from_frames` returns.

    Attributes
    ----------
    generator : give it to `ScoreSampler(generator=...)`
    grid : the windows whose label space it is conditioned on
    effective : float64, shape (n_windows,); effective frames under each window's umbrella, see `effective_frames`
    covered : bool, shape (n_windows,); windows with `ENOUGH` of them, which are the generator's support
    coverage : the same in words
    frames, rows : how many frames there were to draw from, and rows drawn from them
    held_out : (step, loss) on stretches of time that were not trained on
    force_evaluations : made for forces that were not recorded, to compare recorded ones, and to find equivalent atoms
    left_out : one sentence for everything that was not used
    """

    generator: Generator
    grid: WindowGrid
    effective: np.ndarray
    covered: np.ndarray
    coverage: str
    frames: int
    rows: int
    held_out: list[tuple[int, float]]
    steps: int
    force_evaluations: int
    seconds: float
    left_out: tuple[str, ...]


def train_from_frames(
    molecule: MolecularSystem,
    frames: RecordedFrames,
    *,
    options: SamplerOptions | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Pretrained:
    """Train a generator on unbiased frames.

    To an unbiased configuration x belongs the label c = ξ(x) + N(0, kT/κ) (README, "How it works", 2): of the joint
    law p(x, c) ∝ exp(−βU(x)) exp(−½βκ(ξ(x) − c)²) the conditional p(x|c) is the umbrella ensemble π_c. That stays so
    when labels are given any other weight; here they are uniform over what the frames cover. Training itself, with
    forces, is that of a run.

    Forces are evaluated only for the configurations drawn, where they were not recorded.

    Parameters
    ----------
    frames : unbiased and at the molecule's temperature, from `load_frames` or `read_trajectories`; CVs are evaluated
        anew, as the molecule defines them
    options : of which `training`, `network` and `ode_steps` count
    seed : of the rows, their labels, and the network

    Raises
    ------
    InputError
        for frames of another molecule, potential or temperature, biased ones, or none under any window.
    """
    started = time.perf_counter()
    options, say = options or SamplerOptions(), progress or (lambda line: None)
    if options.ladder:
        raise InputError("frames of one temperature cannot train a generator for a ladder: leave the ladder out")
    left_out = list(frames.left_out)
    _check_molecule(molecule, frames)
    campaign = Campaign(molecule, options, np.random.SeedSequence(seed), say)
    kept = campaign.stereo.kept(frames.positions)
    if not kept.all():
        left_out.append(f"{int((~kept).sum())} frames in which a stiff bond or a centre is not as at the start")
    if not kept.any():
        raise InputError("no frame has the cis/trans states and the handedness of the start: is it the same molecule?")
    own = np.flatnonzero(kept)
    cvs, grid, rng = molecule.evaluate_cvs(frames.positions[own]), campaign.grid, campaign.rng()
    effective = effective_frames(cvs, grid)
    covered = effective >= ENOUGH
    if not covered.any():
        raise InputError(_nothing_covered(molecule, cvs, effective))
    rows, labels = draw_labelled_rows(cvs, grid, np.flatnonzero(covered), options.training.rows, rng)
    used, rows = np.unique(rows, return_inverse=True)
    chosen = own[used]

    rotors, cost = threefold_rotors(molecule, campaign.settings, frames.positions[chosen[:4]])
    if frames.forces is None or frames.energies is None:
        say(f"evaluating the forces of {len(chosen)} frames")
        energies, forces, more = evaluate(campaign.settings, frames.positions[chosen])
    else:
        energies, forces = frames.energies[chosen], frames.forces[chosen]
        more = _check_forces(campaign, frames.positions[chosen], forces)
    cost += more
    sound = np.isfinite(energies)
    if not sound.all():
        left_out.append(f"{int((~sound).sum())} frames whose energy or forces are not finite")
        rows, labels = rows[sound[rows]], labels[sound[rows]]
        forces[~sound], energies[~sound] = 0.0, 0.0  # in no row any more
    if not len(rows):
        raise InputError("the energy of no frame is finite: is it the same molecule, in the same order of atoms?")
    windows = np.array([grid.nearest(point) for point in cvs[used]], dtype=np.int64)
    n = len(chosen)
    whole = Frames(
        positions=frames.positions[chosen],
        forces=forces,
        energies=energies,
        cvs=cvs[used],
        labels=grid.centers[windows],
        windows=windows,
        log_weights=np.zeros(n),
        source=np.full(n, MD),
    )
    unknown = np.full(len(grid.centers), np.nan)
    level = LevelFrames(Selection.of([whole]), np.ones(n), unknown, molecule, grid, len(rows))
    say(f"training on {n} of {len(frames)} frames")
    with one_thread():
        data = build_training_set(
            [level], z_matrix=campaign.z_matrix, rotors=rotors, rng=rng, drawn_rows=[(rows, labels)]
        )
        stretch = chosen[data.group] * min(BLOCKS, len(frames)) // len(frames)
        result = train(
            replace(data, group=stretch),
            options=options.training,
            network_options=options.network,
            seed=int(rng.integers(2**31)),
            ode_steps=options.ode_steps,
        )
    return Pretrained(
        generator=result.generator,
        grid=grid,
        effective=effective,
        covered=covered,
        coverage=_coverage(molecule, grid, covered),
        frames=len(own),
        rows=len(rows),
        held_out=result.held_out,
        steps=result.steps,
        force_evaluations=cost,
        seconds=time.perf_counter() - started,
        left_out=tuple(left_out),
    )


# which frames belong to which labels


def effective_frames(cvs: np.ndarray, grid: WindowGrid) -> np.ndarray:
    """Return how many unbiased frames stand for each window, float64, shape (n_windows,).

    This is Kish's effective number of the weights exp(−bias) of frames within `NEAR` widths of the umbrella. Frames
    that follow each other closely in time are worth less.

    cvs : float64, shape (n, n_cvs)
    """
    return np.array([_effective(grid.reduced_bias(cvs, center)) for center in grid.centers])


def _effective(bias: np.ndarray) -> np.ndarray:
    """Return Kish's effective number over the last axis, 0 where no frame is near."""
    weights = np.where(bias < 0.5 * NEAR**2, np.exp(-bias), 0.0)
    squares = (weights**2).sum(axis=-1)
    return np.asarray(weights.sum(axis=-1) ** 2 / np.where(squares > 0, squares, 1.0))


def draw_labelled_rows(
    cvs: np.ndarray, grid: WindowGrid, covered: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return frames, int64, shape (m,), and a label for each, float64, shape (m, n_cvs), in random order.

    Labels are uniform over the cells of the covered windows, and a frame is drawn for each by p(i|c) ∝
    exp(−bias_c(ξᵢ)): the joint law of unbiased frames and their labels ξ + N(0, kT/κ), with the labels' share made
    even. Labels with fewer than `ENOUGH` effective frames are dropped, so that m may be below n.

    Parameters
    ----------
    cvs : float64, shape (n_frames, n_cvs), of unbiased frames; covered : int64, windows
    """
    widths = np.array(
        [
            (high - low) / len(axis) if len(axis) > 1 else 0.0
            for axis, low, high in zip(grid.axes, grid.label_space.minimum, grid.label_space.maximum, strict=False)
        ]
    )
    corner = np.sqrt(2 * grid.reduced_bias(0.5 * widths, np.zeros(len(widths))))  # of a cell, in widths of the umbrella
    counts = np.bincount(rng.integers(len(covered), size=n), minlength=len(covered))
    rows, labels = [], []
    for window, count in zip(covered, counts, strict=True):
        center = grid.centers[window]
        near = np.flatnonzero(grid.reduced_bias(cvs, center) < 0.5 * (REACH + corner) ** 2)
        points = center + widths * (rng.random((count, len(widths))) - 0.5)
        for some in np.array_split(points, max(1, count * len(near) // CHUNK)):
            bias = grid.reduced_bias(cvs[near], some[:, None])
            enough = _effective(bias) >= ENOUGH
            cumulative = np.cumsum(np.exp(-bias[enough]), axis=1)
            uniform = rng.random((len(cumulative), 1)) * cumulative[:, -1:]
            picks = np.minimum((cumulative < uniform).sum(axis=1), len(near) - 1)
            rows.append(near[picks])
            labels.append(some[enough])
    order = rng.permutation(sum(map(len, rows)))
    points = np.concatenate(labels)[order]
    return np.concatenate(rows)[order], grid.difference(points, np.zeros_like(points))


# what is covered, in words


def covered_range(axis: np.ndarray, here: np.ndarray, period: float | None) -> list[tuple[float, float]]:
    """Return the stretches, edges of cells, that the covered windows of one CV fill; one may reach past the period.

    axis : float64, shape (n,), centres; here : bool, shape (n,)
    """
    half = 0.5 * (axis[1] - axis[0]) if len(axis) > 1 else 0.0
    if here.all():
        return [(float(axis[0] - half), float(axis[-1] + half))]
    # begin a periodic CV beside a window that is not covered, so that no stretch is cut in two
    first = int(np.flatnonzero(~here)[0]) if period is not None else 0
    order = np.roll(np.arange(len(axis)), -first)
    found, position = [], 0
    for covered, run in itertools.groupby(here[order]):
        length = len(list(run))
        if covered:
            low, high = axis[order[position]] - half, axis[order[position + length - 1]] + half
            found.append((float(low), float(high if high > low else high + (period or 0.0))))
        position += length
    return found


def _coverage(molecule: MolecularSystem, grid: WindowGrid, covered: np.ndarray) -> str:
    """Return in words which part of CV space the covered windows are."""
    table = covered.reshape(grid.shape)
    parts = []
    for k, (cv, axis) in enumerate(zip(molecule.cvs, grid.axes, strict=True)):
        others = tuple(j for j in range(len(grid.axes)) if j != k)
        stretches = covered_range(axis, np.asarray(table.any(axis=others)), cv.period)
        parts.append(f"{cv.name} " + " and ".join(_stretch(cv, low, high) for low, high in stretches))
    return f"the frames cover {covered.sum()} of {covered.size} windows: {', '.join(parts)}"


def _stretch(cv: CollectiveVariable, low: float, high: float) -> str:
    if cv.period is None or high <= 0.5 * cv.period + 1e-9:
        return f"from {_value(cv, low)} to {_value(cv, high)}"
    return f"from {_value(cv, low)} over {_value(cv, 0.5 * cv.period)} to {_value(cv, high - cv.period)}"


def _nothing_covered(molecule: MolecularSystem, cvs: np.ndarray, effective: np.ndarray) -> str:
    ranges = ", ".join(
        f"{cv.name} from {_value(cv, column.min())} to {_value(cv, column.max())}"
        + ("" if cv.period is not None else f" (its range is {_value(cv, cv.minimum)} to {_value(cv, cv.maximum)})")
        for cv, column in zip(molecule.cvs, cvs.T, strict=True)
    )
    return (
        f"the {len(cvs)} frames cover no window, at best one with {effective.max():.1f} of the {ENOUGH:.0f} effective "
        f"frames needed: {ranges}; give more frames, or CVs whose range holds them"
    )


def _value(cv: CollectiveVariable, value: float | None) -> str:
    assert value is not None
    return f"{round(float(np.degrees(value)))}°" if cv.unit == "rad" else f"{value:.3g} {cv.unit}".rstrip()


# are these frames of this molecule?


def _check_molecule(molecule: MolecularSystem, frames: RecordedFrames) -> None:
    """Refuse frames whose atoms, temperature or bonds are not the molecule's; no force is evaluated."""
    if not len(frames):
        raise InputError("there are no frames to train on")
    if frames.positions.shape[1] != molecule.n_atoms:
        raise InputError(f"the frames have {frames.positions.shape[1]} atoms and {molecule.name} {molecule.n_atoms}")
    if not np.isfinite(frames.positions).all():
        raise InputError("the frames hold positions that are not finite")
    given = frames.temperature_k
    if given is not None and abs(given - molecule.temperature_k) > TEMPERATURE_TOLERANCE_K:
        raise InputError(f"the frames are of {given:g} K, and {molecule.name} of {molecule.temperature_k:g} K")

    def lengths(positions: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        return np.linalg.norm(positions[:, pairs[:, 0]] - positions[:, pairs[:, 1]], axis=-1)

    bonds = molecule.bonds
    longest = lengths(frames.positions, bonds).max(axis=0)
    far = np.flatnonzero(longest > STRETCH * lengths(molecule.positions[None], bonds)[0])
    if len(far):
        i, j = bonds[far[0]]
        raise InputError(
            f"atoms {i} and {j} are bonded, and up to {longest[far[0]]:.3g} nm apart in the frames: the atoms are in "
            "another order, or the molecule is not whole"
        )
    fixed = np.array([(i, j) for i, j, _ in molecule.constraints], dtype=np.int64).reshape(-1, 2)
    wanted = np.array([length for _, _, length in molecule.constraints])
    wrong = np.abs(lengths(frames.positions, fixed) / wanted - 1).max(axis=0) > BOND_TOLERANCE
    if wrong.any():
        i, j = fixed[wrong][0]
        raise InputError(
            f"the bond of atoms {i} and {j} is constrained in {molecule.name} and not in the frames: "
            "use the constraints that the frames were made with"
        )


def _check_forces(campaign: Campaign, positions: np.ndarray, recorded: np.ndarray) -> int:
    """Refuse recorded forces that are not the system's, as of a biased simulation; return the evaluations made."""
    rows = np.unique(np.linspace(0, len(positions) - 1, COMPARED).astype(int))
    _, forces, cost = evaluate(campaign.settings, positions[rows])
    massive = campaign.molecule.masses > 0
    deviation = np.sqrt(np.mean((recorded[rows] - forces)[:, massive] ** 2, axis=(1, 2)))
    scale = np.sqrt(np.mean(forces[:, massive] ** 2))
    if not (deviation < FORCE_TOLERANCE * scale).all():
        raise InputError(
            f"the recorded forces differ from those of {campaign.molecule.name} by up to "
            f"{100 * deviation.max() / scale:.3g} %: the simulation was biased, or had another force field"
        )
    return cost


# files


def read_trajectories(molecule: MolecularSystem, paths: Sequence[str | Path]) -> RecordedFrames:
    """Return the frames of trajectory files, in any format that mdtraj reads; their forces are not known.

    Raises
    ------
    InputError
        for a file that mdtraj cannot read, has other atoms than the molecule, or holds no frame.
    """
    parts = []
    for path in map(Path, paths):
        try:
            trajectory = mdtraj.load(str(path), top=molecule.mdtraj_topology)
        except Exception as error:  # each format's reader raises what it likes
            reason = one_line(error).split(". ")[0]
            if "same atoms" in reason:
                raise InputError(f"{path} does not have the {molecule.n_atoms} atoms of {molecule.name}") from None
            raise InputError(f"{path} cannot be read by mdtraj: {reason}") from None
        if trajectory.n_atoms != molecule.n_atoms:
            raise InputError(f"{path} has {trajectory.n_atoms} atoms and {molecule.name} {molecule.n_atoms}")
        if not trajectory.n_frames:
            raise InputError(f"{path} holds no frames")
        parts.append(np.asarray(trajectory.xyz, dtype=np.float64))
    if not parts:
        raise InputError("give at least one trajectory")
    positions = np.concatenate(parts)
    return RecordedFrames(
        positions, None, None, np.zeros((len(positions), 0)), np.arange(len(positions), dtype=np.int64)
    )


def write_pretrained(folder: Path, result: Pretrained, seed: int, command: str) -> None:
    """Write `generator/` and train.json into a folder; the latter comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    result.generator.save(folder / "generator")
    content = {
        "coverage": result.coverage,
        "windows": [
            {"center": center, "effective_frames": number, "covered": bool(inside)}
            for center, number, inside in zip(result.grid.centers, result.effective, result.covered, strict=True)
        ],
        "frames": result.frames,
        "rows": result.rows,
        "left_out": result.left_out,
        "held_out": result.held_out,
        "steps": result.steps,
        "force_evaluations": result.force_evaluations,
        "seconds": result.seconds,
        "temperature_k": result.grid.temperature_k,
        "force_constants": result.grid.force_constants,
        "seed": seed,
        "versions": versions(),
        "command": command,
    }
    write_json(folder / "train.json", plain(content))
