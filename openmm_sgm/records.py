"""Digests, and sealed records of arrays and JSON without code."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from .files import read_bytes, write_atomically

__all__ = ["RecordError", "digest", "file_digest", "read_record", "write_record"]

SEAL = 32
"""Bytes of the digest with which a record begins."""
BLOCK = 1 << 20
MOST_RECORD = 8 << 30
"""Bytes that a record may have."""


class RecordError(ValueError):
    """A record is not what was written."""


def file_digest(path: Path, *, durable: bool = False) -> str:
    """Return the digest of a file's content; `durable` flushes it to the disk as well."""
    state = hashlib.blake2b(digest_size=SEAL)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
        if durable:
            os.fsync(file.fileno())
    return state.hexdigest()


def digest(*values: Any) -> str:
    """Return a digest of values: arrays with shape and dtype, numbers, text, and tuples, lists, dicts, dataclasses.

    Equal content has an equal digest in every process and on every machine; unequal content has not.

    Raises
    ------
    TypeError
        for a value of another type.
    """
    state = hashlib.blake2b(digest_size=SEAL)

    def add(tag: str, content: bytes) -> None:
        state.update(struct.pack("<cQ", tag.encode(), len(content)) + content)

    def walk(value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | str | np.number):
            add("v", f"{type(value).__name__}:{value!r}".encode())
        elif isinstance(value, bytes):
            add("b", value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            add("a", f"{value.dtype.str}:{value.shape}".encode())
            add("b", np.ascontiguousarray(value).tobytes())
        elif isinstance(value, tuple | list):
            add("s", struct.pack("<Q", len(value)))
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            add("d", struct.pack("<Q", len(value)))
            for key in sorted(value):
                walk(key)
                walk(value[key])
        elif is_dataclass(value):
            add("c", type(value).__name__.encode())
            for field in fields(value):
                walk(getattr(value, field.name))
        else:
            raise TypeError(f"a {type(value).__name__} has no digest")

    walk(values)
    return state.hexdigest()


def write_record(path: Path, arrays: dict[str, np.ndarray], content: Any, *, durable: bool = False) -> int:
    """Write arrays (safetensors) and JSON content behind their digest, atomically; return the bytes written."""
    header = {"content": json.dumps(content)}
    body = save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()}, header)
    write_atomically(path, hashlib.blake2b(body, digest_size=SEAL).digest() + body, durable=durable)
    return SEAL + len(body)


def read_record(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    """Read what `write_record` wrote; nothing is looked at before the digest fits, and nothing is executed.

    Raises
    ------
    RecordError
        for any other content.
    """
    try:
        data = read_bytes(path, MOST_RECORD)
        seal, body = data[:SEAL], data[SEAL:]
        if hashlib.blake2b(body, digest_size=SEAL).digest() != seal:
            raise RecordError(f"{path.name} is not what was written")
        length = struct.unpack("<Q", body[:8])[0]
        return load_tensors(body), json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["content"])
    except (ValueError, LookupError, TypeError, RecursionError, struct.error, SafetensorError) as error:
        raise RecordError(f"{path.name} holds no record: {error}") from None
