"""Frames refuse what they do not hold by name, select and join, and come back from disk bit for bit."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openmm_sgm.frames import BURN_IN, GENERATED, INJECTED, MD, Frames, Selection, rows_by_window

FIELDS = tuple(field.name for field in fields(Frames))
N, ATOMS, CVS = 7, 3, 2
DTYPES = {name: np.dtype(np.float64) for name in FIELDS} | {
    "windows": np.dtype(np.int64),
    "source": np.dtype(np.int8),
}


def arrays(n: int = N, seed: int = 0) -> dict[str, np.ndarray]:
    """Return valid arguments of `Frames`: n frames of three atoms and two CVs."""
    rng = np.random.default_rng(seed)
    return {
        "positions": rng.normal(size=(n, ATOMS, 3)),
        "forces": rng.normal(scale=1000, size=(n, ATOMS, 3)),
        "energies": rng.normal(size=n),
        "cvs": rng.normal(size=(n, CVS)),
        "labels": rng.normal(size=(n, CVS)),
        "windows": rng.integers(5, size=n),
        "log_weights": rng.normal(size=n),
        "source": np.resize(np.array([BURN_IN, MD, INJECTED, GENERATED], dtype=np.int8), n),
    }


def assert_identical(a: Frames, b: Frames) -> None:
    """Every field has the same dtype, shape and bytes."""
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), name


# What goes in


def test_fields_have_the_stated_shapes_and_dtypes() -> None:
    given = arrays()
    frames = Frames(**given)
    assert len(frames) == N
    shapes = {name: getattr(frames, name).shape for name in FIELDS}
    vectors, points = (N, ATOMS, 3), (N, CVS)
    assert shapes == dict.fromkeys(FIELDS, (N,)) | {
        "positions": vectors,
        "forces": vectors,
        "cvs": points,
        "labels": points,
    }
    assert {name: getattr(frames, name).dtype for name in FIELDS} == DTYPES
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(frames, name), given[name])
    with pytest.raises(FrozenInstanceError):
        frames.energies = np.zeros(N)


def test_arrays_of_other_precision_and_lists_are_converted() -> None:
    given = arrays()
    frames = Frames(
        **{
            **given,
            "positions": np.asfortranarray(given["positions"].astype(np.float32)),
            "energies": list(range(N)),
            "windows": given["windows"].astype(np.int32),
            "source": [MD] * N,
        }
    )
    assert {name: getattr(frames, name).dtype for name in FIELDS} == DTYPES
    assert frames.positions.flags.c_contiguous
    np.testing.assert_array_equal(frames.positions, given["positions"].astype(np.float32))
    np.testing.assert_array_equal(frames.windows, given["windows"])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("positions", (N, ATOMS)),
        ("positions", (N, ATOMS, 2)),
        ("forces", (N, ATOMS + 1, 3)),
        ("forces", (N - 1, ATOMS, 3)),
        ("forces", (N, 3 * ATOMS)),
        ("energies", (N - 1,)),
        ("energies", (N, 1)),
        ("cvs", (N + 1, CVS)),
        ("cvs", (N,)),
        ("labels", (N, CVS + 1)),
        ("labels", (N,)),
        ("windows", (1,)),
        ("windows", (N, CVS)),
        ("log_weights", (0,)),
        ("source", (N + 1,)),
    ],
)
def test_an_array_of_another_shape_is_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    message = rf"Frames\.{name} must have shape .*got \({', '.join(map(str, shape))}"
    with pytest.raises(ValueError, match=message):
        Frames(**{**arrays(), name: np.zeros(shape)})


@pytest.mark.parametrize(("name", "shape"), [("positions", (3,)), ("positions", ()), ("cvs", ()), ("energies", ())])
def test_an_array_of_too_few_dimensions_is_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"Frames\.{name}"):
        Frames(**{**arrays(), name: np.zeros(shape)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", ["positions", "forces", "energies", "cvs", "labels", "log_weights"])
def test_values_that_are_not_finite_are_refused_by_name(name: str, value: float) -> None:
    given = arrays()
    given[name].flat[1] = value
    given[name].flat[-1] = value
    if name == "log_weights" and value == -np.inf:
        frames = Frames(**given)
        assert np.isneginf(frames.log_weights[[1, -1]]).all()
    else:
        with pytest.raises(ValueError, match=rf"Frames\.{name} holds 2 values that are not finite"):
            Frames(**given)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast", "ignore:Casting complex values")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("windows", np.full(N, np.nan)),
        ("windows", np.full(N, 1.7)),
        ("source", np.full(N, 300)),
        ("source", np.full(N, 1.5)),
        ("energies", np.full(N, 1 + 2j)),
        ("energies", np.full(N, "low")),
    ],
    ids=["windows nan", "windows 1.7", "source 300", "source 1.5", "energies complex", "energies text"],
)
def test_a_dtype_that_cannot_hold_the_values_is_refused_by_name(name: str, value: np.ndarray) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"Frames\.{name}"):
        Frames(**{**arrays(), name: value})


# Selecting and joining


@pytest.mark.parametrize(
    "index",
    [slice(2, 5), slice(None, None, -2), np.array([6, 0, 0, 3]), np.arange(N) % 2 == 0, np.zeros(0, dtype=int)],
    ids=["slice", "reversed", "indices", "mask", "none"],
)
def test_indexing_selects_the_same_rows_of_every_field(index: Any) -> None:
    given = arrays()
    selected = Frames(**given)[index]
    assert len(selected) == len(np.arange(N)[index])
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(selected, name), given[name][index])


def test_concatenate_keeps_the_order_of_parts_and_rows() -> None:
    frames = Frames(**arrays(n=9))
    parts = [frames[:4], Frames.empty(ATOMS, CVS), frames[4:5], frames[5:]]
    assert_identical(Frames.concatenate(parts), frames)
    assert_identical(Frames.concatenate([frames]), frames)
    backwards = Frames.concatenate(parts[::-1])
    np.testing.assert_array_equal(backwards.energies, frames.energies[[5, 6, 7, 8, 4, 0, 1, 2, 3]])


def test_concatenate_needs_parts_of_one_system() -> None:
    frames = Frames(**arrays())
    with pytest.raises(ValueError, match="at least one"):
        Frames.concatenate([])
    with pytest.raises(ValueError, match=r"dimensions.* match"):
        Frames.concatenate([frames, Frames.empty(ATOMS + 1, CVS)])
    with pytest.raises(ValueError, match=r"dimensions.* match"):
        Frames.concatenate([frames, Frames.empty(ATOMS, CVS + 1)])


def test_empty() -> None:
    frames = Frames.empty(22, 3)
    assert len(frames) == 0
    assert frames.positions.shape == frames.forces.shape == (0, 22, 3)
    assert frames.cvs.shape == frames.labels.shape == (0, 3)
    assert {name: getattr(frames, name).dtype for name in FIELDS} == DTYPES


# On disk


def test_save_and_load_bit_for_bit(tmp_path: Path) -> None:
    given = arrays()
    given["log_weights"][2] = -np.inf
    given["energies"][:3] = [-0.0, 5e-324, np.nextafter(1.0, 2.0)]
    frames = Frames(**given)
    path = tmp_path / "frames.npz"
    frames.save(path)
    assert_identical(Frames.load(path), frames)
    assert [file.name for file in tmp_path.iterdir()] == ["frames.npz"], "the temporary file is gone"

    other = Frames(**arrays(n=2, seed=1))
    other.save(path)
    assert_identical(Frames.load(path), other)
    assert [file.name for file in tmp_path.iterdir()] == ["frames.npz"]


def test_no_frames_can_be_saved(tmp_path: Path) -> None:
    frames = Frames.empty(22, 2)
    frames.save(tmp_path / "none.npz")
    assert_identical(Frames.load(tmp_path / "none.npz"), frames)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "frames.npz"
    frames = Frames(**arrays())
    frames.save(path)
    before = path.read_bytes()

    def full_disk(file: Any, **_: np.ndarray) -> None:
        file.write(b"PK half of an arch")
        raise OSError("no space left on device")

    monkeypatch.setattr("openmm_sgm.frames.np.savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        Frames(**arrays(seed=1)).save(path)
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="no space left"):
        frames.save(tmp_path / "new.npz")
    assert not (tmp_path / "new.npz").exists(), "half a file must not look like a whole one"
    monkeypatch.undo()
    assert_identical(Frames.load(path), frames)
    frames[:2].save(path)
    assert_identical(Frames.load(path), frames[:2])


class Trap:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_load_refuses_pickles_and_runs_nothing(tmp_path: Path) -> None:
    trap, sprung = Trap(tmp_path / "sprung"), tmp_path / "sprung"
    pickle.loads(pickle.dumps(trap))
    assert sprung.exists(), "the trap works where pickles are read"
    sprung.unlink()
    members = {**arrays(), "energies": np.array([trap] * N, dtype=object)}
    np.savez(tmp_path / "archive.npz", **members)
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(trap))
    for name in ("archive.npz", "plain.npz"):
        with pytest.raises((ValueError, zipfile.BadZipFile), match=r"no array of numbers|not a zip"):
            Frames.load(tmp_path / name)
    assert not sprung.exists()


def test_load_checks_what_it_reads(tmp_path: Path) -> None:
    np.savez(tmp_path / "short.npz", **{**arrays(), "energies": np.zeros(N - 1)})
    with pytest.raises(ValueError, match=r"Frames\.energies must have shape"):
        Frames.load(tmp_path / "short.npz")
    np.savez(tmp_path / "less.npz", **{k: v for k, v in arrays().items() if k != "labels"})
    with pytest.raises(KeyError, match="labels"):
        Frames.load(tmp_path / "less.npz")


# Windows


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([4, 0, 4, 2, 0, 0], [[1, 4, 5], [3], [0, 2]]),
        ([3, 3, 3], [[0, 1, 2]]),
        ([5], [[0]]),
        ([2, 1, 0], [[2], [1], [0]]),
        ([], []),
    ],
    ids=str,
)
def test_rows_by_window(windows: list[int], expected: list[list[int]]) -> None:
    rows = rows_by_window(np.array(windows, dtype=np.int64))
    assert [r.tolist() for r in rows] == expected


def test_rows_by_window_is_a_partition() -> None:
    windows = np.random.default_rng(3).integers(40, size=500)
    rows = rows_by_window(windows)
    assert sorted(np.concatenate(rows).tolist()) == list(range(500))
    assert [int(windows[r[0]]) for r in rows] == sorted(set(windows.tolist()))
    for r in rows:
        assert len(set(windows[r].tolist())) == 1
        assert (np.diff(r) > 0).all(), "each window's samples keep their order"


def test_a_selection_is_what_gathering_and_indexing_give() -> None:
    rng = np.random.default_rng(3)
    parts = [Frames(**arrays(n, seed=n)) for n in (4, 0, 7, 2)]
    masks = [rng.random(len(part)) < 0.7 for part in parts]
    chosen = Selection.of(parts, masks)
    kept = Frames.gather(parts, masks)
    assert len(chosen) == len(kept)
    np.testing.assert_array_equal(chosen.column("energies"), kept.energies)
    index = rng.integers(len(kept), size=20)
    assert_identical(chosen.take(index), kept[index])
    assert_identical(chosen[index][3:9].take(), kept[index][3:9])
    assert_identical(Selection.of(parts).take(), Frames.concatenate(parts))
