"""Data flows one way: a module of the package imports only from modules above it in the list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = "openmm_sgm"
FOLDER = Path(__file__).resolve().parents[1] / PACKAGE

ORDER = (
    "units",
    "files",
    "folders",
    "structure_files",
    "xml_files",
    "forces",
    "place",
    "records",
    "status",
    "frames",
    "expressions",
    "cvs",
    "cv_checks",
    "velocities",
    "diffusion_maps",
    "features",
    "cv_functions",
    "learned",
    "rotatable",
    "stereo",
    "supported",
    "dynamics",
    "agreement",
    "biases",
    "from_simulation",
    "system",
    "system_file",
    "new_system",
    "reporter",
    "platforms",
    "workers",
    "executors",
    "parsl_pool",
    "preflight",
    "engine",
    "simulate",
    "set_aside",
    "bursts",
    "cells",
    "reduced",
    "symmetry",
    "labels",
    "whitening",
    "zmatrix",
    "representation",
    "cartesian",
    "windows",
    "networks",
    "diffusion",
    "generator",
    "training",
    "journal",
    "lifting",
    "inject",
    "importance",
    "mbar",
    "hidden",
    "confined",
    "free_energy",
    "basins",
    "geometry",
    "effective",
    "kramers_moyal",
    "propagator",
    "transitions",
    "options",
    "campaign",
    "explore",
    "guidance",
    "unbiased",
    "same_simulation",
    "doubts",
    "sampler",
    "runfolder",
    "pretrain",
    "umbrella",
    "grown_bias",
    "rivals",
    "measure",
    "compare",
    "figures",
    "pages",
    "viewer",
    "geometry_figures",
    "methods",
    "run_warnings",
    "compare_report",
    "report",
    "arguments",
    "cli",
)


def imported_modules(source: str) -> set[str]:
    """Names that `source`, a module of the package, imports from the package; wherever in it the import stands.

    A name taken from the package itself counts as a module, except `__version__`, the one thing that lives there.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [PACKAGE if node.level else "", node.module]))
            paths = [f"{base}.{alias.name}" for alias in node.names] if base == PACKAGE else [base]
        else:
            continue
        for path in paths:
            package, _, rest = path.partition(".")
            if package == PACKAGE:
                found.add(rest.partition(".")[0] or PACKAGE)
    return found - {"__version__"}


def violations(module: str, source: str) -> list[str]:
    """Imports of `module` that do not come from above it; sorted."""
    above = ORDER[: ORDER.index(module)]
    return sorted(imported_modules(source) - set(above))


MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def test_package_is_flat_and_every_module_is_listed() -> None:
    assert MODULES, f"no module found in {FOLDER.name}"
    assert not [path.parent.name for path in FOLDER.glob("*/*.py")], "the package is flat"
    assert not set(MODULES) - set(ORDER), "a new module takes its place in ORDER"


@pytest.mark.parametrize("module", [module for module in ORDER if module in MODULES])
def test_module_imports_only_from_above(module: str) -> None:
    assert violations(module, (FOLDER / f"{module}.py").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from .frames import Frames\nfrom .units import InputError\nimport numpy", []),
        ("from . import __version__, frames", []),
        ("from .sampler import ScoreSampler", ["sampler"]),
        ("from . import frames, sampler", ["sampler"]),
        ("import openmm_sgm.cli as c", ["cli"]),
        ("import openmm_sgm", ["openmm_sgm"]),
        ("from openmm_sgm.report import write", ["report"]),
        ("from openmm_sgm import ScoreSampler", ["ScoreSampler"]),
        ("def late():\n    from .cli import main", ["cli"]),
        ("from .system import itself", ["system"]),
        ("from openmm_sgm_extras import anything", []),
    ],
)
def test_the_check_sees_each_form_of_import(source: str, expected: list[str]) -> None:
    assert violations("system", source) == expected
