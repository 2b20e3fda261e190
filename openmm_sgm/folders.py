"""What in a folder is the program's own: these names are written, read and deleted, nothing else, and no link followed.

A folder may come from someone else, or be one in which a user keeps other files. So everything that works in the folder
of a run or of a comparison asks `refuse_strangers` first, and what is deleted is deleted here, by its name.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .files import PARTIAL
from .units import InputError

__all__ = ["COMPARISON", "RUN", "Layout", "delete_files", "delete_partials", "names_in", "refuse_strangers"]


@dataclass(frozen=True)
class Layout:
    """The names that the program writes in a folder.

    Attributes
    ----------
    files : plain files
    folders : all that is in them is the program's
    others : folders that are left to another program, here Parsl
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    others: tuple[str, ...] = ()


RUN = Layout(
    files=(
        *("surface.csv", "result.json", "samples.dcd", "topology.pdb", "weights.csv", "ledger.csv", "report.html"),
        *("status.json", "diagnostics.npz", "diagnostics.json", "lock"),
    ),
    folders=("generator", "failed", "state", "journal"),
    others=("parsl",),
)
COMPARISON = Layout(
    files=(
        *("setup.json", "compare.csv", "compare.json", "compare.md", "compare.html"),
        *("error_force_evaluations.png", "error_seconds.png"),
    ),
    folders=("rows",),
)


def refuse_strangers(folder: Path, layout: Layout) -> None:
    """Refuse a folder where a link, or what is no plain file or folder, stands under one of the program's names.

    Links are refused wherever they lead, and also where they would only be read: a folder is what lies in it.

    Raises
    ------
    InputError
        one sentence that names it; nothing has been opened then.
    """
    for name in layout.files:
        _refuse_unless(folder / name, stat.S_ISREG, "file")
    for name in (*layout.folders, *layout.others):
        _refuse_unless(folder / name, stat.S_ISDIR, "folder")
    for path in _walk(folder, layout):
        _refuse_unless(path, lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode), "file")


def _refuse_unless(path: Path, is_right: object, kind: str) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:  # there is none, or whatever opens it will say what is the matter
        return
    if stat.S_ISLNK(mode):
        raise InputError(f"{path} is a symbolic link, and none is followed here: put the {kind} itself in its place")
    if not is_right(mode):  # type: ignore[operator]
        raise InputError(f"{path} is not the {kind} that belongs under this name: move it away")


def _walk(folder: Path, layout: Layout) -> Iterator[Path]:
    """Yield everything in the folders that are the program's, without entering a link."""
    waiting = [str(folder / name) for name in layout.folders if not (folder / name).is_symlink()]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def names_in(folder: Path, layout: Layout) -> list[str]:
    """Return which of the program's names there are in a folder, in the order of the layout."""
    return [n for n in (*layout.files, *layout.folders, *layout.others) if os.path.lexists(folder / n)]


def delete_partials(folder: Path, layout: Layout) -> None:
    """Delete what a killed process was writing, by its name, where the program writes: no file of a user's."""
    with contextlib.suppress(OSError):
        for path in [*folder.iterdir(), *_walk(folder, layout)]:
            if _is_partial(path):
                path.unlink(missing_ok=True)


def delete_files(folder: Path, *endings: str) -> None:
    """Delete the files of a folder whose names end so, what was being written, and the folder if nothing is left in it.

    A link is not entered, and subfolders are left alone.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if (path.name.endswith(endings) or _is_partial(path)) and not path.is_dir():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's files are in it
        folder.rmdir()


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(PARTIAL)
