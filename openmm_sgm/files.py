"""Files that are whole or not there when they are written, and bounded when they are read.

A file that is written has another name until it is whole. These names are the program's own (`PARTIAL`), so that what
a killed process has left can be told from the files of a user. A symbolic link is never written through: the file takes
its place.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import stat
import threading
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError

__all__ = [
    "DAMAGE",
    "MOST_JSON",
    "MOST_WEIGHTS",
    "PARTIAL",
    "check_size",
    "open_table",
    "read_arrays",
    "read_bytes",
    "read_json",
    "read_toml",
    "replacing",
    "sync_folder",
    "write_atomically",
]

PARTIAL = ".openmm-sgm-partial"
"""How the names of files that are not whole yet end; they begin with a dot."""
DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, SafetensorError, csv.Error),
)
"""What reading a file raises whose content is not what was written."""
MOST_TOML = 256 << 10
MOST_JSON = 64 << 20
MOST_WEIGHTS = 1 << 30
MOST_TABLE = 1 << 30
MOST_UNPACKED = 2 << 30
"""Bytes that a file may have: of TOML, JSON, a network, a table (CSV), and the arrays of a compressed archive."""

_PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?<![\w-])(?:{_PART}\.[ \t]*+){{16}}")
"""A key of TOML with more than sixteen parts, `a.b.c`."""


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path of an empty file that takes the place of `path` at the end, and is removed after an error.

    A reader, or a kill at any moment, finds the old content or the new one. What stood under the name, a link as well,
    is replaced and never written through.

    durable : also after a loss of power, which costs the time of a disk's flush
    """
    with _partial(path, durable) as (partial, descriptor):
        os.close(descriptor)
        yield partial


def write_atomically(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Write a file, text as UTF-8, as `replacing` does."""
    with _partial(path, durable) as (_, descriptor), os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def _partial(path: Path, durable: bool) -> Iterator[tuple[Path, int]]:
    """Yield the path and the descriptor, which is left to the caller, of the file that `replacing` is about."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # never one that is there, and so through no link
    try:
        descriptor = os.open(partial, new, 0o666)
    except FileExistsError:
        partial.unlink()
        descriptor = os.open(partial, new, 0o666)
    try:
        yield partial, descriptor
        if durable:
            _flush(partial)
        partial.replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files survive a loss of power."""
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# reading


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a plain file of at most `most` bytes.

    Raises
    ------
    ValueError
        for a larger file, or what is none, such as a pipe; nothing has been read then.
    """
    with _open(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(_too_large(path, len(content), most))
    return content


def check_size(path: Path, most: int) -> None:
    """Refuse what `read_bytes` would, for a file that another library reads."""
    _open(path, most).close()


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Return what a JSON file of at most `most` bytes holds.

    Raises
    ------
    ValueError
        for any other content.
    """
    try:
        return json.loads(read_bytes(path, most))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file of at most `MOST_TOML` bytes holds; raises as `read_json`."""
    text = read_bytes(path, MOST_TOML).decode()
    if _LONG_KEY.search(text):  # tomllib takes the square of the length for these
        raise ValueError("a key has too many parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def open_table(path: Path) -> IO[str]:
    """Open a CSV file of at most `MOST_TABLE` bytes for reading; raises as `read_bytes`."""
    with _open(path, MOST_TABLE) as file:
        return os.fdopen(os.dup(file.fileno()), encoding="utf-8", newline="")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file; nothing in it is executed.

    Before memory is asked for, each array must be as long as its header says, and all together no longer than the file,
    or than `MOST_UNPACKED` where they are compressed.

    Raises
    ------
    ValueError, OSError, zipfile.BadZipFile
        and what else a damaged archive leads to.
    """
    arrays = {}
    with _open(path, 1 << 62) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        size = sum(member.file_size for member in members)
        if size > (MOST_UNPACKED if packed else os.fstat(file.fileno()).st_size):
            raise ValueError(f"the arrays of {path.name} would take {size:,} bytes")
        for member in members:
            with archive.open(member) as content:
                _check_length(content, member)
                arrays[member.filename.removesuffix(".npy")] = np.lib.format.read_array(content, allow_pickle=False)
    return arrays


def _check_length(content: IO[bytes], member: zipfile.ZipInfo) -> None:
    """Refuse an array that its header makes longer or shorter than it is; `content` stands at its start again then."""
    version = np.lib.format.read_magic(content)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[version](content)
    if dtype.hasobject or min(shape, default=0) < 0 or len(shape) > 32:
        raise ValueError(f"{member.filename} is no array of numbers")
    if math.prod(shape) * dtype.itemsize != member.file_size - content.tell():
        raise ValueError(f"{member.filename} is not as long as its header says")
    content.seek(0)


def _open(path: Path, most: int) -> IO[bytes]:
    """Open a plain file of at most `most` bytes; a pipe is refused without waiting for its other end."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode) or about.st_size > most:
        file.close()
        raise ValueError(
            _too_large(path, about.st_size, most) if stat.S_ISREG(about.st_mode) else f"{path.name} is no plain file"
        )
    return file


def _too_large(path: Path, size: int, most: int) -> str:
    return f"{path.name} has {size:,} bytes, and may have {most:,}"
