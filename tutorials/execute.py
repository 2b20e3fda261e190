"""Execute the tutorials and keep their outputs: python tutorials/execute.py [NOTEBOOK ...], or make tutorials.

A notebook runs in a temporary copy of what it reads, so that it leaves nothing in the repository but its outputs, and
in the Python that this script runs in, whatever kernels are installed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
READ = ("systems", "examples", "benchmarks/results")
SECONDS_A_CELL = 900
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OPENMM_CPU_THREADS")


class ThisPython(AsyncKernelManager):
    """Starts the kernel of the Python that runs here."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def execute(path: Path) -> Any:
    """Return the notebook with the outputs of this execution, and nothing else that changes from one to the next.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        where a cell does.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for part in READ:
            shutil.copytree(FOLDER.parent / part, root / part)
        here = root / FOLDER.name
        here.mkdir()
        kernel = ThisPython(connection_file=str(root / "kernel.json"))
        client = NotebookClient(notebook, km=kernel, timeout=SECONDS_A_CELL, resources={"metadata": {"path": here}})
        paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"IPYTHONDIR": str(root / "ipython"), "PYTHONPATH": os.pathsep.join(paths)}
        client.execute(env={**os.environ, **dict.fromkeys(THREADS, "1"), **own})
    return tidy(notebook)


def tidy(notebook: Any) -> Any:
    """Take out what changes with each execution: times, ids, and how printed text was cut into pieces."""
    version = notebook.metadata.get("language_info", {}).get("name", "python")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": version},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            before = outputs[-1] if outputs else None
            if output.output_type == "stream":
                output.text = re.sub(r"\S*ipykernel_\d+\S*: ", "", output.text)  # before a warning: where it came from
            if before is not None and output.output_type == "stream" and output.get("name") == before.get("name"):
                before.text += output.text
                continue
            outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs
    return notebook


def main(paths: list[Path]) -> None:
    for path in paths:
        started = time.perf_counter()
        nbformat.write(execute(path), path)
        size = path.stat().st_size / 1000
        print(f"{path.name}: {time.perf_counter() - started:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")))
