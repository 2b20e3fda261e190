"""Options and frames in, a fitted `Generator` out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .cartesian import CartesianRepresentation, fit_cartesian
from .diffusion import SIGMA_MAX, SIGMA_MIN, ScoreModel, training_loss
from .files import DAMAGE
from .frames import Selection
from .generator import Generator
from .networks import NetworkOptions, ScoreNetwork
from .records import RecordError, digest, read_record, write_record
from .representation import Representation, fit_representation
from .symmetry import permuted
from .system import MolecularSystem
from .units import InputError, one_line, thermal_energy
from .windows import WindowGrid
from .zmatrix import ZMatrix

__all__ = [
    "Checkpoint",
    "LevelFrames",
    "TrainingOptions",
    "TrainingResult",
    "TrainingSet",
    "build_training_set",
    "train",
]

CHUNK = 4096
"""Frames whose biases in all windows are computed at once."""
CHECKPOINT_SECONDS = 20.0
TRAINING = ".training"
"""How the names of checkpoints end."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes
    ----------
    steps, batch_size, learning_rate : Adam with cosine decay to zero
    ema : decay of the exponential moving average of the weights, whose result is kept
    hold_out : share of frames held out; every `check_every` steps their loss is measured, the best weights are kept,
        and after `patience` checks without a better one training ends
    gradient_clip : largest norm of a gradient step
    gradient_limit : force targets are clipped to this many standard deviations, coordinate by coordinate
    use_forces : False leaves the forces out (denoising score matching alone)
    rows : size of the training set drawn from the frames
    """

    steps: int = 1500
    batch_size: int = 320
    learning_rate: float = 2e-3
    ema: float = 0.995
    hold_out: float = 0.1
    check_every: int = 250
    patience: int = 3
    gradient_clip: float = 1.0
    gradient_limit: float = 8.0
    use_forces: bool = True
    rows: int = 20_000


@dataclass(frozen=True)
class TrainingSet:
    """Encoded frames.

    Attributes
    ----------
    representation : the coordinates they are encoded in
    z, gradients : float32, shape (n, d); coordinates and ∇_z log π_c
    label_features : float32, shape (n, m)
    group : int64, shape (n,); the configuration that a row was made from: copies of one never stand on both sides of
        the hold-out
    """

    representation: Representation | CartesianRepresentation
    z: np.ndarray
    gradients: np.ndarray
    label_features: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class LevelFrames:
    """What is known at one temperature.

    Attributes
    ----------
    frames : of the windows of `grid`; weights : shape (n,), of each among those of its window, 1 for MD
    free_energies : shape (n_windows,), kT, NaN where there is none
    molecule, grid : at that temperature; rows : size of the training set to draw from it
    """

    frames: Selection
    weights: np.ndarray
    free_energies: np.ndarray
    molecule: MolecularSystem
    grid: WindowGrid
    rows: int


@dataclass(frozen=True)
class TrainingResult:
    """The generator, the held-out loss at each check as (step, loss), the steps taken and the seconds they took."""

    generator: Generator
    held_out: list[tuple[int, float]]
    steps: int
    seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """Where a training saves itself, so that it goes on bit for bit where it was killed, or is found to be done.

    Attributes
    ----------
    folder : holds one file for each training, named by a digest of its data, options and seed; made when needed
    stopping : asked after every step; when it returns True the training is saved and `KeyboardInterrupt` raised
    seconds : between two saves; how often has no influence on the result
    """

    folder: Path
    stopping: Callable[[], bool] = lambda: False
    seconds: float = CHECKPOINT_SECONDS


def build_training_set(
    levels: Sequence[LevelFrames],
    *,
    z_matrix: ZMatrix | None,
    rotors: list[tuple[int, int, int]],
    rng: np.random.Generator,
    drawn_rows: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
) -> TrainingSet:
    """Draw a training set in which every label of a level has the same share, and fit the representation to it.

    A frame is not tied to the window it came from. Under windows sampled alike, the label of a configuration x is
    distributed as p(k|x) ∝ exp(f_k − bias_k(x)) (the weights of MBAR, Shirts & Chodera 2008, equation 9), so each row
    draws its label anew: one frame teaches several labels. Equivalent hydrogens are relabelled at random.

    Parameters
    ----------
    levels : frames of each temperature; one without a ladder
    z_matrix : of a molecule in free space; None for particles that are tied to a place
    drawn_rows : for each level the rows, int64, shape (rows,), and their labels, shape (rows, n_cvs), where these have
        been drawn by another law than the above
    """
    chosen, points = zip(*(drawn_rows or [_draw_rows(level, rng) for level in levels]), strict=True)
    drawn = [level.frames.take(rows) for level, rows in zip(levels, chosen, strict=True)]
    positions = np.concatenate([frames.positions for frames in drawn])
    forces = np.concatenate([frames.forces for frames in drawn])
    positions, forces = permuted([positions, forces], rotors, rng)
    labels = np.concatenate([level.grid.labels(own) for level, own in zip(levels, points, strict=True)])
    molecule = levels[0].molecule
    space = levels[0].grid.label_space
    representation = (
        fit_cartesian(positions, labels, space)
        if z_matrix is None
        else fit_representation(
            positions,
            labels,
            np.ones(len(labels)),
            z_matrix=z_matrix,
            label_space=space,
            constraints=molecule.constraints,
            masses=molecule.masses,
        )
    )
    sizes = [len(rows) for rows in chosen]
    beta = np.repeat([1 / thermal_energy(level.grid.temperature_k) for level in levels], sizes)
    constants = np.repeat([level.grid.force_constants for level in levels], sizes, axis=0)
    in_coordinates = set(representation.cv_of.tolist())
    others = [k for k in range(len(molecule.cvs)) if k not in in_coordinates]
    if others:
        offsets = levels[0].grid.difference(molecule.evaluate_cvs(positions), np.concatenate(points))
        slopes = (constants * offsets)[:, others]
        forces -= np.einsum("nk,nkai->nai", slopes, molecule.cv_gradients(positions, others))
    x, c = torch.as_tensor(positions), torch.as_tensor(labels)
    coordinate_constants = torch.as_tensor(constants[:, representation.cv_of])
    z, gradients = representation.force_targets(
        x, torch.as_tensor(forces), c, torch.as_tensor(beta), coordinate_constants
    )
    features = representation.label_space.features(c)[:, 1:]
    first = np.cumsum([0, *(len(level.frames) for level in levels[:-1])])
    group = np.concatenate([rows + start for rows, start in zip(chosen, first, strict=True)])
    return TrainingSet(
        representation, z.float().numpy(), gradients.float().numpy(), features.float().numpy(), group=group
    )


def _draw_rows(level: LevelFrames, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the level's frames, int64, shape (rows,), and a label for each, shape (rows, n_cvs)."""
    frames, grid, free_energies = level.frames, level.grid, level.free_energies
    known = np.flatnonzero(np.isfinite(free_energies))
    cvs = frames.column("cvs")
    size = np.bincount(frames.column("windows"), level.weights, minlength=len(free_energies))

    def terms(cvs: np.ndarray) -> np.ndarray:
        """Return exp(f_k − bias_k) up to a factor common to all k, shape (n, n_known)."""
        log_terms = free_energies[known] - grid.reduced_bias(cvs[:, None], grid.centers[known])
        return np.asarray(np.exp(log_terms - log_terms.max(axis=1, keepdims=True)))

    share = np.empty(len(frames))
    for start in range(0, len(frames), CHUNK):
        some = slice(start, start + CHUNK)
        here = terms(cvs[some])
        share[some] = level.weights[some] * here.sum(axis=1) / (here @ np.maximum(size[known], 1e-12))
    chosen = rng.choice(len(frames), size=level.rows, p=share / share.sum())
    picks = np.empty(level.rows, dtype=np.int64)
    for start in range(0, level.rows, CHUNK):
        some = slice(start, start + CHUNK)
        cumulative = np.cumsum(terms(cvs[chosen[some]]), axis=1)
        picks[some] = (cumulative < rng.random(len(cumulative))[:, None] * cumulative[:, -1:]).sum(axis=1)
    return chosen, grid.centers[known][np.minimum(picks, len(known) - 1)]


@dataclass
class _Fit:
    """A training on its way: everything that the next step depends on, and the best weights so far."""

    network: ScoreNetwork
    average: ScoreNetwork
    best: ScoreNetwork
    optimiser: torch.optim.Adam
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR
    source: torch.Generator
    best_loss: float
    history: list[tuple[int, float]]
    worse: int = 0
    step: int = 0
    done: bool = False
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write all of it, atomically, without code."""
        arrays = {"source": self.source.get_state().numpy()}
        for name in ("network", "average", "best"):
            weights = getattr(self, name).state_dict()
            arrays |= {f"{name}.{key}": value.numpy() for key, value in weights.items()}
        adam = self.optimiser.state_dict()["state"]
        arrays |= {f"adam.{k}.{key}": value.numpy() for k, own in adam.items() for key, value in own.items()}
        schedule = self.schedule.state_dict()
        content = {
            "schedule": {key: value for key, value in schedule.items() if not callable(value)},
            "learning_rates": [group["lr"] for group in self.optimiser.param_groups],
            **{name: getattr(self, name) for name in _NUMBERS},
        }
        path.parent.mkdir(exist_ok=True)
        write_record(path, arrays, content)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote; without a file, or with one that is damaged, nothing changes.

        Raises
        ------
        InputError
            for a file that is whole, and of something else.
        """
        try:
            arrays, content = read_record(path)
        except (FileNotFoundError, RecordError):
            return
        try:
            self._put(arrays, content)
        except DAMAGE as error:  # whole, and yet not what `save` writes: half of it is in place now
            raise InputError(f"{path} is no training of this run's: delete it ({one_line(error)})") from None

    def _put(self, arrays: dict[str, np.ndarray], content: Any) -> None:
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

        def named(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        for name in ("network", "average", "best"):
            getattr(self, name).load_state_dict(named(f"{name}."))
        adam: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in named("adam.").items():
            k, _, name = key.partition(".")
            adam.setdefault(int(k), {})[name] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": adam})
        for group, rate in zip(self.optimiser.param_groups, content["learning_rates"], strict=True):
            group["lr"] = rate
        self.schedule.load_state_dict(content["schedule"])
        self.source.set_state(tensors["source"])
        for name in _NUMBERS:
            setattr(self, name, content[name])
        self.history = [(int(step), float(loss)) for step, loss in content["history"]]


_NUMBERS = ("best_loss", "history", "worse", "step", "done", "seconds")


def train(
    data: TrainingSet,
    *,
    options: TrainingOptions,
    network_options: NetworkOptions,
    seed: int,
    previous: Generator | None = None,
    ode_steps: int = 10,
    checkpoint: Checkpoint | None = None,
) -> TrainingResult:
    """Fit the score network by denoising and force-informed score matching (README, "How it works", 3).

    The weights of `previous` are the start where its representation has the same coordinates. With a `checkpoint` a
    training that was killed goes on where it was, with the same result.
    """
    started = time.perf_counter()
    representation = data.representation
    source = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ScoreNetwork(
            representation.n_linear, representation.n_rotors, data.label_features.shape[1], network_options
        )
    if previous is not None and representation.has_coordinates_of(previous.representation):
        network.load_state_dict(previous.network.state_dict())
    model = ScoreModel(network)
    z, gradients = torch.as_tensor(data.z), torch.as_tensor(data.gradients)
    features = torch.as_tensor(data.label_features)
    limit = options.gradient_limit * torch.sqrt((gradients**2).median(0).values / 0.455)  # χ² of one degree's median
    gradients = torch.clamp(gradients, -limit, limit)
    variance = 1 / (gradients**2).mean(0).clamp(1e-12) if options.use_forces else torch.zeros(z.shape[1])

    groups = np.unique(data.group)
    held_groups = np.random.default_rng(seed).permutation(groups)[: int(options.hold_out * len(groups))]
    held = torch.as_tensor(np.isin(data.group, held_groups))
    kept, out = torch.nonzero(~held)[:, 0], torch.nonzero(held)[:, 0]
    check_rows = out[:2000]
    check_sigma = _noise_levels(len(check_rows), source)
    check_noise = torch.randn(len(check_rows), z.shape[1], generator=source)

    def held_out_loss(candidate: ScoreNetwork) -> float:
        with torch.no_grad():
            rows = check_rows
            batch = (z[rows], gradients[rows], features[rows], variance, check_sigma, check_noise)
            loss = training_loss(ScoreModel(candidate), *batch)
        return float(loss.mean())

    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
    average = copy.deepcopy(network).requires_grad_(False)
    first = held_out_loss(average)
    fit = _Fit(network, average, copy.deepcopy(average), optimiser, schedule, source, first, [(0, first)])
    pairs = ([p.detach() for p in average.parameters()], [p.detach() for p in network.parameters()])
    path = None
    if checkpoint is not None:
        before = previous.to_bytes() if previous is not None else None
        same = data.z, data.gradients, data.label_features, data.group, options, network_options, seed, before
        path = checkpoint.folder / f"{digest(*same)}{TRAINING}"
        fit.load(path)
    saved = time.perf_counter()
    while fit.step < options.steps and not fit.done:
        fit.step += 1
        rows = kept[torch.randint(len(kept), (options.batch_size,), generator=source)]
        sigma = _noise_levels(options.batch_size, source)
        noise = torch.randn(options.batch_size, z.shape[1], generator=source)
        loss = training_loss(model, z[rows], gradients[rows], features[rows], variance, sigma, noise).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), options.gradient_clip)
        optimiser.step()
        schedule.step()
        torch._foreach_lerp_(pairs[0], pairs[1], 1 - min(options.ema, (fit.step + 1) / (fit.step + 10)))
        if fit.step % options.check_every == 0 or fit.step == options.steps:
            value = held_out_loss(average)
            fit.history.append((fit.step, value))
            if value < fit.best_loss or not len(out):
                fit.best, fit.best_loss, fit.worse = copy.deepcopy(average), value, 0
            else:
                fit.worse += 1
                fit.done = fit.worse >= options.patience
        fit.done |= fit.step == options.steps
        if checkpoint is not None and path is not None:
            stopping, now = checkpoint.stopping(), time.perf_counter()
            if fit.done or stopping or now - saved >= checkpoint.seconds:
                fit.seconds, started, saved = fit.seconds + now - started, now, now
                fit.save(path)
            if stopping:
                raise KeyboardInterrupt
    generator = Generator(representation, fit.best.eval(), ode_steps)
    return TrainingResult(generator, fit.history, fit.step, fit.seconds + time.perf_counter() - started)


def _noise_levels(n: int, source: torch.Generator) -> torch.Tensor:
    """Return stratified log-uniform noise levels, shape (n, 1), in random order."""
    u = (torch.randperm(n, generator=source) + torch.rand(n, generator=source)) / max(n, 1)
    return (SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** u)[:, None]
