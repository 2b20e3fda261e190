"""`Generator`: representation and score model together; draws configurations at a label with their exact density."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from .cartesian import CartesianRepresentation
from .diffusion import ScoreModel, encode_density, sample_with_density
from .executors import Pace, UnitCounts, run_safely
from .labels import LabelSpace
from .networks import NetworkOptions, ScoreNetwork
from .representation import Representation

__all__ = ["Generator", "Samples", "generate", "log_densities"]

T = TypeVar("T")

FORMAT_VERSION = 1
BATCH = 256
"""Samples integrated at once: large enough for the matrix products, small enough to stay in cache (measured)."""
DRAW_BLOCK = 128
"""Draws with a seed of their own: as few as can be integrated at once without losing speed (measured), because the
fewest draws that are spread over workers are a few hundred."""
UNITS_EACH, MOST_BLOCKS = 4, 8
"""Units for each worker, and blocks in a unit at most (1,024 draws: some seconds)."""


_KINDS: dict[type[Representation] | type[CartesianRepresentation], str] = {
    Representation: "internal",
    CartesianRepresentation: "cartesian",
}


class Samples(NamedTuple):
    """Generated configurations.

    positions : float64, shape (n, n_atoms, 3), nm; log_density : float64, shape (n,), log q(x|c) in Cartesian measure
    valid : bool, shape (n,), False where the draw is no configuration; label_of : int64, shape (n,), −1
    where nothing is known of the draw
    """

    positions: np.ndarray
    log_density: np.ndarray
    valid: np.ndarray
    label_of: np.ndarray

    @property
    def lost(self) -> np.ndarray:
        """Draws of which nothing is known, because a worker failed at them; bool, shape (n,)."""
        return self.label_of < 0


@dataclass(frozen=True)
class Generator:
    """A conditional generator of whole configurations, x ~ q(x|c), with exact log density.

    Attributes
    ----------
    representation : the map between x and z
    network : the score network's weights, float32
    steps : Runge–Kutta steps of the probability-flow ODE (four evaluations each)
    """

    representation: Representation | CartesianRepresentation
    network: ScoreNetwork
    steps: int = 10

    @property
    def model(self) -> ScoreModel:
        """The network within its parameterisation."""
        return ScoreModel(self.network)

    @property
    def label_space(self) -> LabelSpace:
        """The space of labels."""
        return self.representation.label_space

    def sample(self, labels: np.ndarray, counts: np.ndarray, seed: int) -> Samples:
        """Draw `counts[k]` configurations at `labels[k]`, in that order.

        Parameters
        ----------
        labels : float64, shape (n_labels, n_cvs), CV units (and ln(T/T₀), see `LabelSpace`); counts : int, (n_labels,)
        """
        source = torch.Generator().manual_seed(seed)
        c = torch.as_tensor(np.asarray(labels, dtype=np.float64))
        features = self.network_features(c)
        label_of = torch.as_tensor(np.repeat(np.arange(len(c)), counts))
        parts = []
        for rows in label_of.split(BATCH):
            used, index = torch.unique(rows, return_inverse=True)
            z, log_q = sample_with_density(self.model, features[used], index, self.steps, source)
            x, log_volume, valid = self.representation.decode(z.double(), c[rows])
            finite = torch.isfinite(log_q - log_volume) & torch.isfinite(x).all(dim=(1, 2))
            parts.append((x, log_q - log_volume, valid & finite))
        if not parts:
            return Samples(
                np.zeros((0, self.representation.n_atoms, 3)), np.zeros(0), np.zeros(0, bool), label_of.numpy()
            )
        x, log_q, valid = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return Samples(x.numpy(), log_q.numpy(), valid.numpy(), label_of.numpy())

    def log_density(self, positions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return log q(x|c), shape (n,), of configurations (n, n_atoms, 3) nm at labels (n, n_cvs)."""
        x, c = torch.as_tensor(positions), torch.as_tensor(np.asarray(labels, dtype=np.float64))
        out = []
        for rows in torch.arange(len(x)).split(BATCH):
            z, log_volume = self.representation.encode(x[rows], c[rows])
            used, index = torch.unique(c[rows], dim=0, return_inverse=True)
            log_q = encode_density(self.model, z.float(), self.network_features(used), index, self.steps)
            out.append(log_q - log_volume)
        return torch.cat(out).numpy() if out else np.zeros(0)

    def network_features(self, labels: torch.Tensor) -> torch.Tensor:
        """Return what the network is told of labels (n, n_cvs): float32 (n, n_features), without the constant."""
        return self.label_space.features(labels)[:, 1:].float()

    def with_steps(self, steps: int) -> Generator:
        """Return the same generator with another number of integration steps."""
        return replace(self, steps=steps)

    @cached_property
    def _bytes(self) -> tuple[bytes, str]:
        arrays = {f"representation.{k}": np.ascontiguousarray(v) for k, v in self.representation.to_arrays().items()}
        arrays |= {f"network.{k}": v.detach().contiguous().numpy() for k, v in self.network.state_dict().items()}
        space = self.label_space
        header: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "representation": _KINDS[type(self.representation)],
            "n_atoms": self.representation.n_atoms,
            "steps": self.steps,
            "network": self.network.options.to_dict(),
            "label_space": {
                "periods": space.periods,
                "minimum": space.minimum,
                "maximum": space.maximum,
                "thermal": space.thermal,
            },
        }
        return save_tensors(arrays), json.dumps(header, indent=1)

    def to_bytes(self) -> tuple[bytes, str]:
        """Return (safetensors, JSON text): everything there is, with no code in it."""
        return self._bytes

    @staticmethod
    def from_bytes(tensors: bytes, header_text: str) -> Generator:
        """Rebuild from `to_bytes`.

        Raises
        ------
        ValueError
            when the format version is another.
        """
        header = json.loads(header_text)
        if header["format_version"] != FORMAT_VERSION:
            raise ValueError(f"generator format {header['format_version']} is not {FORMAT_VERSION}")
        arrays = load_tensors(tensors)
        given = dict(header["label_space"])
        thermal = bool(given.pop("thermal", False))
        numbers = {name: tuple(v if v is None else float(v) for v in values) for name, values in given.items()}
        space = LabelSpace(**numbers, thermal=thermal)  # type: ignore[arg-type]
        own = {k.removeprefix("representation."): v for k, v in arrays.items() if k.startswith("representation.")}
        weights = {k.removeprefix("network."): torch.tensor(v) for k, v in arrays.items() if k.startswith("network.")}
        kind = {name: kind for kind, name in _KINDS.items()}[header.get("representation", "internal")]
        representation = kind.from_arrays(own, space, int(header["n_atoms"]))
        n_features = weights["condition.0.weight"].shape[1] - 5
        if space.features(torch.zeros(1, len(space.minimum), dtype=torch.float64)).shape[1] - 1 != n_features:
            raise ValueError("the network was trained with other labels")
        with torch.device("meta"):  # whatever size the header asks for, only the weights that are there take memory
            network = ScoreNetwork(
                representation.n_linear, representation.n_rotors, n_features, NetworkOptions(**header["network"])
            )
        network.load_state_dict(weights, assign=True)
        steps, n_atoms = int(header["steps"]), int(header["n_atoms"])
        if steps < 1 or n_atoms != (len(own["inverse_masses"]) if "inverse_masses" in own else len(own["mixing"]) / 3):
            raise ValueError(f"steps must be 1 or more and the atoms those of the arrays, got {steps} and {n_atoms}")
        return Generator(representation, network.requires_grad_(False), steps)

    def save(self, folder: Path) -> None:
        """Write `generator.safetensors` and `generator.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors, header = self.to_bytes()
        for name, content in (("generator.safetensors", tensors), ("generator.json", header.encode())):
            temporary = folder / (name + ".tmp")
            temporary.write_bytes(content)
            temporary.replace(folder / name)

    @staticmethod
    def load(folder: Path) -> Generator:
        """Read what `save` wrote; nothing in the files is executed."""
        return Generator.from_bytes(
            (folder / "generator.safetensors").read_bytes(), (folder / "generator.json").read_text()
        )


_loaded: dict[str, Generator] = {}


def _cached(tensors: bytes, header: str) -> Generator:
    """Return the generator in this process, rebuilding it only when it is another than last time."""
    digest = hashlib.sha256(tensors + header.encode()).hexdigest()
    if digest not in _loaded:
        _loaded.clear()
        _loaded[digest] = Generator.from_bytes(tensors, header)
    return _loaded[digest]


Block = tuple[np.ndarray, np.ndarray, int]
"""Labels, counts and the seed of at most `DRAW_BLOCK` draws."""


def _sample_unit(unit: tuple[bytes, str, list[Block]]) -> list[Samples]:
    tensors, header, blocks = unit
    generator = _cached(tensors, header)
    return [generator.sample(labels, counts, seed) for labels, counts, seed in blocks]


def _density_unit(unit: tuple[bytes, str, list[tuple[np.ndarray, np.ndarray]]]) -> list[np.ndarray]:
    tensors, header, blocks = unit
    generator = _cached(tensors, header)
    return [generator.log_density(positions, labels) for positions, labels in blocks]


def generate(
    generator: Generator,
    labels: np.ndarray,
    counts: np.ndarray,
    seeds: np.random.SeedSequence,
    executor: Executor,
    workers: int,
    pace: Pace | None = None,
    unit_counts: UnitCounts | None = None,
) -> Samples:
    """Draw as `Generator.sample` does, spread over an executor.

    Every `DRAW_BLOCK` draws have a seed of their own, in order, so that the result does not depend on how they are
    shared out. Draws of a unit that failed twice are NaN and not valid: of these nothing is known, and they count
    nowhere (`Samples.lost`).
    """
    tensors, header = generator.to_bytes()
    label_of = np.repeat(np.arange(len(labels)), counts)
    pieces = [label_of[start : start + DRAW_BLOCK] for start in range(0, len(label_of), DRAW_BLOCK)]
    blocks: list[Block] = []
    for piece, child in zip(pieces, seeds.spawn(len(pieces)), strict=True):
        used, own = np.unique(piece, return_counts=True)
        blocks.append((labels[used], own, int(child.generate_state(1)[0])))

    def check(unit: tuple[bytes, str, list[Block]], results: list[Samples]) -> None:
        for (_, own, _), result in zip(unit[2], results, strict=True):
            sizes = {len(column) for column in result}
            numbers = result.log_density[result.valid], result.positions[result.valid]
            if sizes != {own.sum()} or not all(np.isfinite(column).all() for column in numbers):
                raise ValueError("draws are incomplete or not finite")

    def give_up(unit: tuple[bytes, str, list[Block]], reason: str) -> list[Samples]:
        return [_lost(int(own.sum()), generator.representation.n_atoms) for _, own, _ in unit[2]]

    work = _shared_out(blocks, workers)
    answers = run_safely(
        executor,
        _sample_unit,
        [(tensors, header, own) for own in work],
        split=lambda unit: [(tensors, header, [block]) for block in unit[2]],
        check=check,
        give_up=give_up,
        seconds=None if pace is None else lambda unit: pace.limit(DRAW_BLOCK * len(unit[2])),
        counts=unit_counts,
    )
    results = [result for pieces, _ in answers for piece in pieces for result in piece]
    if unit_counts is not None:
        unit_counts.set_aside += sum(bool(result.lost.any()) for result in results)
    if not results:
        return _lost(0, generator.representation.n_atoms)
    positions, log_density, valid, lost = (
        np.concatenate([getattr(r, name) for r in results]) for name in ("positions", "log_density", "valid", "lost")
    )
    return Samples(positions, log_density, valid, np.where(lost, -1, label_of))


def log_densities(
    generator: Generator,
    positions: np.ndarray,
    labels: np.ndarray,
    executor: Executor,
    workers: int,
    pace: Pace | None = None,
    unit_counts: UnitCounts | None = None,
) -> np.ndarray:
    """Return `Generator.log_density` spread over an executor, NaN where a block failed twice."""
    tensors, header = generator.to_bytes()
    starts = range(0, len(positions), DRAW_BLOCK)
    blocks = [(positions[k : k + DRAW_BLOCK], labels[k : k + DRAW_BLOCK]) for k in starts]

    def check(unit: Any, results: list[np.ndarray]) -> None:
        if [len(result) for result in results] != [len(own) for own, _ in unit[2]]:
            raise ValueError("densities are incomplete")

    answers = run_safely(
        executor,
        _density_unit,
        [(tensors, header, own) for own in _shared_out(blocks, workers)],
        split=lambda unit: [(tensors, header, [block]) for block in unit[2]],
        check=check,
        give_up=lambda unit, reason: [np.full(len(own), np.nan) for own, _ in unit[2]],
        seconds=None if pace is None else lambda unit: pace.limit(DRAW_BLOCK * len(unit[2])),
        counts=unit_counts,
    )
    return np.concatenate([np.zeros(0), *(result for pieces, _ in answers for piece in pieces for result in piece)])


def _shared_out(blocks: list[T], workers: int) -> list[list[T]]:
    """Return consecutive blocks in some non-empty lists for each worker."""
    n = max(UNITS_EACH * max(1, workers), -(-len(blocks) // MOST_BLOCKS))
    return [[blocks[k] for k in own] for own in np.array_split(np.arange(len(blocks)), n) if len(own)]


def _lost(n: int, n_atoms: int) -> Samples:
    unknown = np.full(n, np.nan)
    return Samples(np.full((n, n_atoms, 3), np.nan), unknown, np.zeros(n, bool), np.full(n, -1))
