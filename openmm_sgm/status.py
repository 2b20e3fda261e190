"""What a run's folder says of it from small JSON files alone: who is at work there, how far it is, how to go on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform as host
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .files import read_json, write_atomically
from .folders import RUN, refuse_strangers
from .units import InputError, SamplingError

__all__ = ["describe", "holder", "locked", "read_status", "resumed", "storage_errors", "write_json"]

LOCK = "lock"
LOCK_TRIES, LOCK_SECONDS = 5, 0.05
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_FIELDS = {"state": str, "force_evaluations": int, "budget": int, "history": list, "command": str}
_MORE_FIELDS = {"seed": int, "workers": int | None, "ladder": list, "quick": bool}
"""Those that a folder must have, and those from which a run goes on where it has them."""


def write_json(path: Path, content: Any, *, durable: bool = False) -> None:
    """Write `content` as JSON, atomically: a reader sees the old file or the new one."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(), durable=durable)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder: a second process that wants to work in it is refused.

    The operating system releases the lock when this process ends, however it ends. On NFS it holds between machines
    where the server's lock service runs, and only on one machine with the mount option local_lock; on a file system
    without locks the folder is not protected.

    Raises
    ------
    InputError
        when another process holds the folder, or nothing can be written in it.
    """
    try:
        file = _open_lock(folder, "a+")
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror}") from None
    with file:
        try:
            _lock(file)
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use by {_name(file.name) or 'another process'}: wait until it ends, or end it"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        with contextlib.suppress(OSError):  # a full disk: the lock holds, without a name
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": host.node()}))
            file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def _open_lock(folder: Path, mode: str) -> IO[str]:
    """Open a folder's lock; a link is not followed, and a pipe not waited for."""
    safely = os.O_NOFOLLOW | os.O_NONBLOCK
    return open(folder / LOCK, mode, opener=lambda path, flags: os.open(path, flags | safely, 0o666))


def _lock(file: IO[str]) -> None:
    """Lock a file, and try again for a while: `holder` has it for a moment whenever somebody asks for the status."""
    for left in reversed(range(LOCK_TRIES)):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(LOCK_SECONDS)


def holder(folder: Path) -> str | None:
    """Return who is at work in a run's folder, in words; None when nobody is, or that cannot be told."""
    try:
        with _open_lock(folder, "r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _name(folder / LOCK) or "another process"
    except OSError:
        return None
    return None


def _name(path: str | Path) -> str | None:
    try:
        content = read_json(Path(path))
        return f"process {int(content['pid'])} on {content['host']}"
    except (OSError, ValueError, LookupError, TypeError):
        return None


@contextlib.contextmanager
def storage_errors(folder: Path, command: str) -> Iterator[None]:
    """Within, a disk that is full or may not be written to ends the run with a sentence.

    Raises
    ------
    SamplingError
        instead of the operating system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        raise SamplingError(
            f"cannot write in {folder}: {error.strerror}; what had been saved is whole: put that right, then "
            f"continue with: {resumed(command)}"
        ) from None


def resumed(command: str) -> str:
    """Return the command by which a run goes on."""
    return command if "--resume" in command.split() else f"{command} --resume"


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json.

    Raises
    ------
    InputError
        when there is none, it cannot be read, or a link stands under a name of the program's.
    """
    refuse_strangers(folder, RUN)
    try:
        content = read_json(folder / "status.json")
    except OSError:
        raise InputError(f"{folder} holds no run") from None
    except ValueError:
        raise InputError(f"{folder / 'status.json'} is damaged") from None
    whole = isinstance(content, dict) and all(isinstance(content.get(k), kind) for k, kind in _FIELDS.items())
    whole = whole and all(isinstance(content[k], kind) for k, kind in _MORE_FIELDS.items() if k in content)
    whole = whole and all(isinstance(temperature, int | float) for temperature in content.get("ladder", []))
    if not whole or not all(isinstance(record, dict) for record in content["history"]):
        raise InputError(f"{folder / 'status.json'} is damaged")
    return content


def describe(folder: Path) -> list[str]:
    """Return how far the run in a folder is, in lines; what would steer a terminal is a question mark in them.

    Raises
    ------
    InputError
        as `read_status`.
    """
    status = read_status(folder)
    try:
        return ["".join(c if c.isprintable() else "?" for c in line) for line in _lines(folder, status)]
    except (LookupError, TypeError, ValueError):
        raise InputError(f"{folder / 'status.json'} is damaged") from None


def _lines(folder: Path, status: dict[str, Any]) -> Iterator[str]:
    state, at_work = status["state"], holder(folder)
    if state == "running" and not at_work:
        state = "killed"
    yield f"{state}: {status['force_evaluations']:,} of {status['budget']:,} force evaluations"
    if at_work:
        yield f"  at work: {at_work}"
    if state != "finished" and status.get("phase"):
        kept = _kept(folder / "journal")
        yield f"  in {status['phase']}" + (f", {kept}" if kept else "")
    for record in status["history"]:
        acceptance = "" if record["acceptance"] is None else f", acceptance {record['acceptance']:.2f}"
        error = "" if record["error_kj_mol"] is None else f", error {record['error_kj_mol']:.2f} kJ/mol"
        yield f"  {record['stage']}: {record['force_evaluations']:,} force evaluations{acceptance}{error}"
    if "windows" in status:
        set_aside = status.get("set_aside", {})
        yield f"  {status['windows']} windows, {len(set_aside)} set aside"
        for place, reason in list(set_aside.items())[:5]:
            yield f"    {place}: {reason}"
    for warning in status.get("warnings", []):
        yield f"warning: {warning}"
    if state != "finished" and not at_work:
        yield f"to continue: {resumed(status['command'])}"


def _kept(journal: Path) -> str:
    """Return what stands in the journal of the phase, in words."""
    times = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(journal):
            with contextlib.suppress(OSError):
                times.append(entry.stat().st_mtime)
    if not times:
        return ""
    return f"{len(times):,} results since the last save, the latest {max(0.0, time.time() - max(times)):.0f} s ago"
