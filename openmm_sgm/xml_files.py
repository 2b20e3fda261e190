"""XML of force fields and systems, which OpenMM may run as code: read as data, or refused unless the user trusts it.

OpenMM 8 executes `<Script>` and `<InitializationScript>` of a force-field file and evaluates its attribute
`useDispersionCorrection`, in included files as well (`openmm.app.forcefield`); it unpickles a `PythonForce` of a
serialised system (`PythonForceProxy`), and a plugin's force may do what it likes. OpenMM's own force fields, and those
of installed packages that announce a folder to it, are trusted as the programs are.
"""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import openmm
from openmm.app import forcefield

from .files import read_bytes
from .units import InputError, one_line

__all__ = ["force_field_path", "inside", "read_system"]

MOST_XML = 64 << 20
MOST_DEPTH = 100
"""Bytes of a file, and elements within each other."""
SCRIPTS = ("Script", "InitializationScript")
EVALUATED = "useDispersionCorrection"
_TRUST = "look at it, then add --trust (in a script trust=True) if it may"


def inside(folder: Path, name: str) -> Path:
    """Return the path of file `name` of the folder; refuse one that leads out of it, or that does not exist."""
    try:
        path = (folder / name).resolve()
        path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        raise InputError(f"{name[:60]!r} is no name of a file") from None
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"'{name}' lies outside {folder}: all files of a system must be in its folder")
    if not path.is_file():
        raise InputError(f"{folder} holds no file '{name}'")
    return path


def read_system(path: Path, trust: bool = False) -> openmm.System:
    """Return the system that OpenMM has serialised to a file.

    Unless it is trusted, OpenMM is given what was looked at and nothing else: comments and the like, which its reader
    takes in another way than XML says, are gone.

    Raises
    ------
    InputError
        for what cannot be read, is no system, or runs code.
    """
    try:
        if trust:
            text = read_bytes(path, MOST_XML).decode()
        else:
            root = _read_tree(path)
            _refuse_forces_with_code(path, root)
            text = ElementTree.tostring(root, encoding="unicode")
        system = openmm.XmlSerializer.deserialize(text)
    except InputError:
        raise
    except (openmm.OpenMMException, ValueError, OSError) as error:
        raise InputError(f"'{path.name}' cannot be read: {one_line(error)}") from error
    if not isinstance(system, openmm.System):
        raise InputError(f"'{path.name}' holds no System but {type(system).__name__}")
    return system


def force_field_path(folder: Path, name: str, trust: bool = False) -> str:
    """Return the path of a force-field file: the folder's own, whose code is looked for, or OpenMM's of that name.

    A file in the directory from which the program was started, which OpenMM would prefer to its own, is none of these.

    Raises
    ------
    InputError
        where there is no such file, it cannot be read or lies outside the folder, or it, or one that it includes, runs
        code.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or (folder / name).is_file():
        path = inside(folder, name)
        if not trust:
            _refuse_scripts(folder, path)
        return str(path)
    own = _openmm_file(name)
    if own is None:
        raise InputError(f"there is no force field '{name}' in {folder} or of OpenMM's")
    return own


def _refuse_scripts(folder: Path, path: Path) -> None:
    """Refuse a force-field file of the folder that runs code, or includes one that does."""
    waiting, seen = [path], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        root = _read_tree(path)
        for element in root.iter():
            if element.tag in SCRIPTS:
                raise InputError(f"'{path.name}' holds a <{element.tag}>, which would run as code here: {_TRUST}")
            if element.get(EVALUATED, "True") not in ("True", "False", "0", "1"):
                raise InputError(f"'{path.name}' has code for {EVALUATED}, which would run here: {_TRUST}")
        for element in root.findall("Include"):
            included = _included(folder, path, element.get("file", ""))
            if included is not None and included not in seen:
                waiting.append(included)


def _included(folder: Path, path: Path, name: str) -> Path | None:
    """Return the folder's file that `path` includes, None for one of OpenMM's; found in the order that OpenMM does."""
    beside = os.path.join(path.parent, name)
    found = beside if os.path.isfile(beside) else name if os.path.isfile(name) else None
    if found is not None:
        return inside(folder, os.path.relpath(found, folder.resolve()))
    if _openmm_file(name) is None:
        raise InputError(f"'{path.name}' includes '{name}', which is neither in {folder} nor of OpenMM's")
    return None


def _openmm_file(name: str) -> str | None:
    """Return the path of a force field in OpenMM's folders, None where it has none of this name."""
    for place in forcefield._getDataDirectories():  # private to OpenMM, which has no other way to ask
        if ".." not in Path(name).parts and os.path.isfile(path := os.path.join(place, name)):
            return path
    return None


def _refuse_forces_with_code(path: Path, root: ElementTree.Element) -> None:
    """Refuse a serialised system in which, at any depth, there is an object that is none of OpenMM's plain ones."""
    for element in root.iter():
        kind = element.get("type", "System")
        if kind == "PythonForce":
            raise InputError(f"'{path.name}' holds a PythonForce, whose code would run here: {_TRUST}")
        if not kind.isdigit() and not isinstance(getattr(openmm, kind, None), type):
            raise InputError(f"'{path.name}' holds a {kind[:60]!r}, none of OpenMM's, which may run code: {_TRUST}")


class _Builder(ElementTree.TreeBuilder):
    """Builds a tree that is not too deep, and refuses a document type, in which entities could grow without end."""

    depth = 0

    def start(self, *given: object) -> ElementTree.Element:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ValueError("its elements are nested too deeply")
        return super().start(*given)  # type: ignore[arg-type]

    def end(self, tag: str) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag)

    def doctype(self, *given: object) -> None:
        raise ValueError("it has a document type, which neither OpenMM nor this program needs")


def _read_tree(path: Path) -> ElementTree.Element:
    """Return the root of an XML file.

    Raises
    ------
    InputError
        for what is no XML, is too large or too deep, or has a document type or entities of its own.
    """
    try:
        content = read_bytes(path, MOST_XML)
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # before a parser expands anything
            raise ValueError("it has a document type, which neither OpenMM nor this program needs")
        return ElementTree.XML(content, ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise InputError(f"'{path.name}' cannot be read: {one_line(error)}") from None
