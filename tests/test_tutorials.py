"""Every tutorial runs to its end as it stands, asserts its claim, and is kept with outputs that anyone may see."""

from __future__ import annotations

import getpass
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST_BYTES = 300_000
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_tutorials() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@each
def test_a_tutorial_runs(path: Path) -> None:
    """In a temporary copy of what it reads; a claim that does not hold is an AssertionError in its last cell."""
    pytest.importorskip("nbclient", reason="nbclient is not installed: pip install -e '.[dev]'")
    spec = importlib.util.spec_from_file_location("execute_tutorials", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = path.read_bytes()
    done = module.execute(path)
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
    assert path.read_bytes() == before


@each
def test_its_outputs_are_kept(path: Path) -> None:
    """With no error, and nothing of the machine that they were made on; small enough to be read in a diff."""
    cells = code_cells(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert all(cell["execution_count"] for cell in cells), "every cell was executed"
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "\n".join(
        "".join(part)
        for output in outputs
        for part in (output.get("text", ""), output.get("data", {}).get("text/plain", ""))
    )
    assert not re.search(r"(?<![\w.])(/(home|root|tmp|work|Users|usr|opt)/|[A-Z]:\\)", text)
    if (user := getpass.getuser()) != "root":
        assert user not in text
    assert path.stat().st_size < LARGEST_BYTES


@each
def test_it_closes_with_its_claim(path: Path) -> None:
    assert re.search(r"(?m)^\s*(assert |np\.testing\.assert_)", "".join(code_cells(path)[-1]["source"]))
