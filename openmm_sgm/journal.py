"""Results of finished work on disk, so that a run killed in the middle of a phase goes on from the last of them.

What a phase does follows from the state at its start. All that takes time in it is units of work: dynamics,
generation, energies, training. Each unit is a pure function of its content, its own seed included, and its result is
kept under the digest of that content as soon as there is one. A phase that was killed is played again from the state
at its start and finds here what had been done; since the content is the name, nothing can be taken for anything else,
and what another number of workers or a changed option asks for anew is simply not found.

A result is written to a temporary name and renamed. It is not flushed to the disk (the operating system does so within
half a minute): each file begins with its digest, so that one that a loss of power has torn is computed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .folders import delete_files
from .generator import Samples, _density_unit, _sample_unit
from .records import digest, read_record, write_record
from .simulate import MDSettings, SegmentResult, _evaluate_chunk, _run_chunk
from .training import TRAINING, Checkpoint
from .workers import Limited

__all__ = ["Journal", "JournalExecutor"]

R = TypeVar("R")

UNIT = ".unit"
"""How the names of results end."""
EVALUATIONS_KEPT = 64
"""Energies of so many configurations are kept in one file."""
_RECORDS: dict[str, type] = {"SegmentResult": SegmentResult, "Samples": Samples}


class Journal:
    """A folder of results of units of work, deleted when the phase that they belong to has been saved.

    Attributes
    ----------
    folder : made when there is something to keep
    stopping : no new unit begins, and a training saves where it is; `JournalExecutor` and `train` then raise
        `KeyboardInterrupt`
    found, kept, bytes_written : results taken from the folder, results put there, and their size; of this process
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopping = False
        self.found = self.kept = self.bytes_written = 0
        self._waiting: set[Future[Any]] = set()
        self._failure: OSError | None = None
        self._lock = Lock()

    def find(self, key: str) -> tuple[bool, Any]:
        """Return whether there is a result, and the result; a damaged one is none."""
        path = self._path(key)
        try:
            result = _decode(*read_record(path))
        except FileNotFoundError:
            return False, None
        except (ValueError, LookupError, TypeError):
            path.unlink(missing_ok=True)
            return False, None
        self.found += 1
        return True, result

    def keep(self, key: str, result: Any) -> None:
        """Keep a result, if it is of a kind that can be; a write that fails is raised by the next `check`."""
        arrays: dict[str, np.ndarray] = {}
        try:
            content = _encode(result, arrays)
        except TypeError:
            return
        try:
            self.folder.mkdir(exist_ok=True)
            size = write_record(self._path(key), arrays, content)
        except OSError as error:
            self._failure = error
            return
        with self._lock:
            self.kept, self.bytes_written = self.kept + 1, self.bytes_written + size

    def check(self) -> None:
        """Raise what keeps work from going on: `KeyboardInterrupt` after `stop`, or the error of a write."""
        if self._failure is not None:
            raise self._failure
        if self.stopping:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Let running units end, and begin no other."""
        self.stopping = True
        for future in list(self._waiting):
            future.cancel()

    def checkpoint(self) -> Checkpoint:
        """Return where a training is saved on its way, and found again when it is done."""
        return Checkpoint(self.folder, lambda: self.stopping)

    def clear(self) -> None:
        """Delete all results: the state that they led to has been saved. Other files, and a linked folder, stay."""
        delete_files(self.folder, UNIT, TRAINING)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{UNIT}"


class JournalExecutor(Executor):
    """Takes results from a journal, and gives to another executor what is not in it.

    Units are kept in pieces: walkers one by one, draws by the block, energies by the `EVALUATIONS_KEPT`. What of a unit
    is missing runs as one, so that a kill loses no more than the units that are running, and units of another size, as
    another number of workers has them, find their pieces. What fails or holds numbers that are not finite is not kept.
    """

    def __init__(self, executor: Executor, journal: Journal) -> None:
        self.executor, self.journal = executor, journal

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        if kwargs or len(args) != 1:
            return self.executor.submit(fn, *args, **kwargs)
        self.journal.check()
        function: Callable[..., Any] = fn.function if isinstance(fn, Limited) else fn
        kind = _PIECES.get(function, _WHOLE)
        name = f"{function.__module__}.{function.__qualname__}"
        pieces = kind.split(args[0])
        keys = [digest(name, _shortened(piece)) for piece in pieces]
        results: list[Any] = [None] * len(pieces)
        missing = []
        for k, key in enumerate(keys):
            there, results[k] = self.journal.find(key)
            if not there:
                missing.append(k)
        answer: Future[Any] = Future()
        if not missing:
            answer.set_result(kind.join(results))
            return answer
        running = self.executor.submit(fn, kind.unite([pieces[k] for k in missing]))
        self.journal._waiting.add(running)

        def take(done: Future[Any]) -> None:
            self.journal._waiting.discard(done)
            with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                if done.cancelled():
                    answer.set_exception(KeyboardInterrupt())
                elif (error := done.exception()) is not None:
                    answer.set_exception(error)
                else:
                    try:
                        for k, result in zip(missing, kind.divide(done.result()), strict=True):
                            if _sound(result):
                                self.journal.keep(keys[k], result)
                            results[k] = result
                        answer.set_result(kind.join(results))
                    except (TypeError, ValueError, LookupError) as damaged:  # what came back is no result of this
                        answer.set_exception(damaged)

        running.add_done_callback(take)
        answer.add_done_callback(lambda a: running.cancel() if a.cancelled() else None)
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.executor.shutdown(wait, cancel_futures=cancel_futures)


class _Pieces(NamedTuple):
    """How a unit is taken apart and put together again, and its result."""

    split: Callable[[Any], list[Any]]
    unite: Callable[[list[Any]], Any]
    divide: Callable[[Any], list[Any]]
    join: Callable[[list[Any]], Any]


def _configurations(unit: tuple[MDSettings, np.ndarray]) -> list[tuple[MDSettings, np.ndarray]]:
    settings, positions = unit
    starts = range(0, len(positions), EVALUATIONS_KEPT)
    return [(settings, positions[start : start + EVALUATIONS_KEPT]) for start in starts]


def _evaluations(result: tuple[np.ndarray, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the parts of energies and forces; all parts of `_configurations` but the last are full."""
    energies, forces = result
    starts = range(0, len(energies), EVALUATIONS_KEPT)
    return [(energies[k : k + EVALUATIONS_KEPT], forces[k : k + EVALUATIONS_KEPT]) for k in starts]


def _columns(rows: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*rows, strict=True))


def _listed(place: int) -> _Pieces:
    """Return the pieces of a unit whose element `place` is a list, with one result for each of its items."""

    def split(unit: Any) -> list[Any]:
        return [(*unit[:place], [item], *unit[place + 1 :]) for item in unit[place]]

    def unite(units: list[Any]) -> Any:
        return (*units[0][:place], [item for unit in units for item in unit[place]], *units[0][place + 1 :])

    return _Pieces(split, unite, lambda result: list(result), lambda results: results)


_WHOLE = _Pieces(lambda unit: [unit], lambda units: units[0], lambda result: [result], lambda results: results[0])
_PIECES: dict[Callable[..., Any], _Pieces] = {
    _run_chunk: _listed(1),
    _sample_unit: _listed(2),
    _density_unit: _listed(2),
    _evaluate_chunk: _Pieces(
        _configurations,
        lambda units: (units[0][0], np.concatenate([positions for _, positions in units])),
        _evaluations,
        _columns,
    ),
}


def _sound(result: Any) -> bool:
    """Return whether a result is one to be found again: what failed, or may be damaged, is to be computed again."""
    if isinstance(result, SegmentResult):
        return result.failure is None and _finite(result.positions, result.energies, result.forces)
    if isinstance(result, Samples):
        return _finite(result.positions[result.valid], result.log_density[result.valid])
    return _finite(*result) if isinstance(result, tuple) else _finite(result)


def _finite(*values: Any) -> bool:
    return all(np.isfinite(value).all() for value in values if isinstance(value, np.ndarray | float))


def _shortened(unit: Any) -> Any:
    """Return the unit with its settings, which all units of a run share, replaced by their digest."""
    if isinstance(unit, tuple) and unit and isinstance(unit[0], MDSettings):
        return (_settings_digest(unit[0]), *unit[1:])
    return unit


@lru_cache(maxsize=16)
def _settings_digest(settings: MDSettings) -> str:
    return digest(settings)


# results as arrays and JSON


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return the JSON skeleton of a result, and put its arrays aside; `TypeError` for what has no place here."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        arrays[name := str(len(arrays))] = value
        return {"array": name}
    kind = type(value).__name__
    if _RECORDS.get(kind) is type(value):
        names = [f.name for f in fields(value)] if is_dataclass(value) else list(_RECORDS[kind].__annotations__)
        return {"record": kind, "fields": {name: _encode(getattr(value, name), arrays) for name in names}}
    if type(value) in (tuple, list):
        return {kind: [_encode(item, arrays) for item in value]}
    raise TypeError(f"a {kind} is not kept")


def _decode(arrays: dict[str, np.ndarray], value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "record" in value:
        return _RECORDS[value["record"]](**{k: _decode(arrays, v) for k, v in value["fields"].items()})
    kind, items = next(iter(value.items()))
    decoded = [_decode(arrays, item) for item in items]
    return tuple(decoded) if kind == "tuple" else decoded
