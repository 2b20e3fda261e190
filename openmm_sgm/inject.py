"""Metropolis moves that put generated configurations into windows exactly, and the ledger of every proposal."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .generator import Samples
from .stereo import Stereo

__all__ = ["Ledger", "LedgerRow", "impossible", "log_importance", "metropolis_chain"]


def log_importance(
    energies: np.ndarray,
    reduced_bias: np.ndarray,
    log_constraint_factor: np.ndarray,
    log_density: np.ndarray,
    beta: float,
) -> np.ndarray:
    """Return log[π_c(x)/q(x|c)] up to the constant of π_c; all arrays of shape (n,), energies in kJ/mol.

    π_c ∝ exp(−βU − bias) |Z|^½ (README, "How it works", 1 and 5; the last factor is Fixman's, see `Representation`). A
    configuration whose density is 0 gets +inf, one whose energy is not finite −inf.
    """
    log_target = -beta * energies - reduced_bias + log_constraint_factor
    log_target = np.where(np.isfinite(log_target), log_target, -np.inf)
    return np.where(
        np.isneginf(log_target), -np.inf, np.where(np.isfinite(log_density), log_target - log_density, np.inf)
    )


def impossible(samples: Samples, energies: np.ndarray, stereo: Stereo) -> np.ndarray:
    """Return why each generated configuration can never be accepted, '' where it can; object array, shape (n,)."""
    reasons = np.full(len(energies), "", dtype=object)
    reasons[~np.isfinite(energies)] = "energy not finite"
    changed = ~stereo.kept(samples.positions)
    reasons[changed] = stereo.changed(samples.positions[changed])
    reasons[~samples.valid] = "outside the representation"
    return reasons


def metropolis_chain(start: float, proposals: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Run the independence sampler (Hastings 1970) over proposals in order: accept with min(1, w'/w).

    Parameters
    ----------
    start : log importance weight log[π_c(x)/q(x|c)] of the configuration that the window holds
    proposals : float64, shape (n,); the same of independent draws from q(·|c)

    Returns
    -------
    accepted : bool, shape (n,)
    state : int64, shape (n,); index of the proposal that the window holds after each test, −1 for the start
    """
    accepted = np.zeros(len(proposals), dtype=bool)
    state = np.empty(len(proposals), dtype=np.int64)
    log_u = np.log(rng.random(len(proposals)))
    here, current = -1, start
    for k, proposed in enumerate(proposals):
        # a start outside the model's support (weight +inf) is never left: its reverse move could not be proposed
        if proposed > -np.inf and log_u[k] < proposed - current:
            accepted[k], here, current = True, k, float(proposed)
        state[k] = here
    return accepted, state


@dataclass(frozen=True)
class LedgerRow:
    """A generated configuration: for which label, what it weighs, and what became of it."""

    number: int
    round: int
    temperature_k: float
    window: int
    label: tuple[float, ...]
    purpose: str
    energy: float
    log_density: float
    log_weight: float
    verdict: str


class Ledger:
    """Every generated configuration in a CSV file: rows requested are rows written.

    Held as arrays, about 50 bytes a row: a long run has millions.
    """

    def __init__(self, cv_names: Sequence[str]) -> None:
        self.cv_names = tuple(cv_names)
        self._parts: list[np.ndarray] = []
        self._words: dict[str, int] = {}
        self._row = np.dtype(
            [
                ("round", np.int32),
                ("temperature_k", np.float64),
                ("window", np.int32),
                ("label", np.float64, (len(self.cv_names),)),
                ("purpose", np.int16),
                ("energy", np.float64),
                ("log_density", np.float64),
                ("log_weight", np.float64),
                ("verdict", np.int16),
            ]
        )

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take in memory."""
        return sum(part.nbytes for part in self._parts)

    @property
    def rows(self) -> list[LedgerRow]:
        """All rows in the order in which they were added, made anew at every call."""
        return list(self)

    def __iter__(self) -> Iterator[LedgerRow]:
        words = list(self._words)
        number = 0
        for part in self._parts:
            for round_number, kelvin, window, label, purpose, energy, log_q, log_w, verdict in part.tolist():
                place = (number, round_number, kelvin, window, tuple(label))
                yield LedgerRow(*place, words[purpose], energy, log_q, log_w, words[verdict])
                number += 1

    def add(
        self,
        round_number: int | np.ndarray,
        temperature_k: float | np.ndarray,
        purpose: str | Iterable[str],
        windows: np.ndarray,
        labels: np.ndarray,
        energies: np.ndarray,
        log_density: np.ndarray,
        log_weights: np.ndarray,
        verdicts: Iterable[str],
    ) -> None:
        """Add one row for each configuration; arrays of shape (n,), labels (n, n_cvs).

        Raises
        ------
        ValueError
            when columns have different lengths.
        """
        verdict_codes = [self._code(word) for word in verdicts]
        columns = (windows, labels, energies, log_density, log_weights, verdict_codes)
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"the ledger was given columns of {', '.join(str(len(c)) for c in columns)} rows")
        part = np.empty(len(windows), dtype=self._row)
        part["round"], part["temperature_k"], part["window"] = round_number, temperature_k, windows
        part["label"], part["energy"], part["log_density"], part["log_weight"] = (
            labels,
            energies,
            log_density,
            log_weights,
        )
        part["purpose"] = self._code(purpose) if isinstance(purpose, str) else [self._code(word) for word in purpose]
        part["verdict"] = verdict_codes
        self._parts.append(part)

    def _code(self, word: str) -> int:
        return self._words.setdefault(word, len(self._words))

    def write(self, path: Path) -> None:
        """Write the ledger, atomically; values that are not finite are left empty."""
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            labels = [f"label_{name}" for name in self.cv_names]
            tail = ["purpose", "energy_kj_mol", "log_density", "log_weight", "verdict"]
            writer.writerow(["number", "round", "temperature_k", "window", *labels, *tail])
            for row in self:
                numbers = [_text(v) for v in (row.energy, row.log_density, row.log_weight)]
                label = [f"{v:.6f}" for v in row.label]
                place = [row.number, row.round, f"{row.temperature_k:g}", row.window]
                writer.writerow([*place, *label, row.purpose, *numbers, row.verdict])
        temporary.replace(path)

    @staticmethod
    def read(path: Path, cv_names: Sequence[str]) -> Ledger:
        """Read what `write` wrote; values that were not finite come back as NaN."""
        ledger = Ledger(cv_names)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if [int(row["number"]) for row in rows] != list(range(len(rows))):
            raise ValueError("the ledger's rows are not numbered from 0 on")
        energies, log_q, log_w = (
            np.array([float(row[name] or "nan") for row in rows])
            for name in ("energy_kj_mol", "log_density", "log_weight")
        )
        ledger.add(
            np.array([int(row["round"]) for row in rows], dtype=np.int32),
            np.array([float(row["temperature_k"]) for row in rows]),
            [row["purpose"] for row in rows],
            np.array([int(row["window"]) for row in rows], dtype=np.int32),
            np.array([[float(row[f"label_{name}"]) for name in cv_names] for row in rows]).reshape(-1, len(cv_names)),
            energies,
            log_q,
            log_w,
            [row["verdict"] for row in rows],
        )
        return ledger


def _text(value: float) -> str:
    return f"{value:.6g}" if np.isfinite(value) else ""
