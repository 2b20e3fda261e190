"""Every code block of the README and of docs/ runs as it stands, or, where it is a command, is one that there is.

Python and TOML blocks of a page run in order, in one namespace that begins with what a reader has at that point (a
simulation, CVs, some frames). Budgets, networks and trainings are smaller than a reader's, nothing else is replaced.
"""

from __future__ import annotations

import functools
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app, unit
from test_cli import quick_options

import openmm_sgm as sgm
from openmm_sgm import cli
from openmm_sgm.arguments import make_parser
from openmm_sgm.options import SamplerOptions
from openmm_sgm.sampler import ScoreSampler

ROOT = Path(__file__).parents[1]
ALANINE, THREE_ATOMS = ROOT / "systems" / "alanine_dipeptide_vacuum", ROOT / "systems" / "three_atoms"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MOST_EVALUATIONS, FEW_EVALUATIONS = 60_000, 8_000


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(page.read_text()) if language in languages]


def quick() -> SamplerOptions:
    return replace(quick_options(), exploration_steps=40, pull_steps=40, density_error=1.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Within, runs are small and have a folder of their own as the current one."""
    start, run = ScoreSampler.__init__, ScoreSampler.run

    def quick_start(self: ScoreSampler, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **{"workers": 0, "options": quick(), **kwargs})

    def quick_run(self: ScoreSampler, force_evaluations: int, *args: Any) -> None:
        # one that has an executor of its own waits for it most of the time
        run(self, min(force_evaluations, FEW_EVALUATIONS if self.workers else MOST_EVALUATIONS), *args)

    monkeypatch.setattr(ScoreSampler, "__init__", quick_start)
    monkeypatch.setattr(ScoreSampler, "run", quick_run)
    monkeypatch.setattr("openmm_sgm.train_from_frames", functools.partial(sgm.train_from_frames, options=quick()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulation_of(folder: Path, temperature_k: float = 300.0, steps: int = 0) -> dict[str, Any]:
    """What a reader has: a simulation, after some steps."""
    molecule = sgm.load_system(folder)
    integrator = openmm.LangevinMiddleIntegrator(temperature_k, 1.0, 0.002)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, molecule.system, integrator, platform)
    simulation.context.setPositions(molecule.positions)
    simulation.step(steps)
    return {"sgm": sgm, "unit": unit, "simulation": simulation, "molecule": molecule, "cvs": list(molecule.cvs)}


def frames_of(simulation: app.Simulation, n: int, spacing: int) -> np.ndarray:
    frames = []
    for _ in range(n):
        simulation.step(spacing)
        frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)
    return np.array(frames)


def has_readme(_: Path) -> dict[str, Any]:
    return simulation_of(ALANINE)


def has_choosing_cvs(_: Path) -> dict[str, Any]:
    import itertools

    import torch

    given = simulation_of(ALANINE, 500.0, 500)
    positions = frames_of(given["simulation"], 300, 20)
    trajectories = [mdtraj.Trajectory(positions[k::3], given["molecule"].topology) for k in range(3)]
    trajectories = [mdtraj.Trajectory(t.xyz, mdtraj.Topology.from_openmm(t.topology)) for t in trajectories]
    more = {"itertools": itertools, "torch": torch, "positions": positions, "hot_positions": positions[::60]}
    return given | more | {"phi": given["cvs"][0], "centers": [-1.5, -1.4, -1.3], "trajectories": trajectories}


def has_effective_dynamics(_: Path) -> dict[str, Any]:
    given = simulation_of(THREE_ATOMS, 900.0)  # hot: bursts as short as these must cross
    cv = given["cvs"][0]
    sampler = ScoreSampler(given["simulation"], [cv], seed=1)
    sampler.run(20_000)
    frames = frames_of(given["simulation"], 100, 10)
    cells = np.arange(20)
    return given | {
        "cvs": [cv],
        "cv": cv,
        "sampler": sampler,
        "frames": frames,
        "start": cells < 3,
        "target": cells > 9,
    }


def has_running(folder: Path) -> dict[str, Any]:
    (folder / "systems").symlink_to(ROOT / "systems")
    return simulation_of(ALANINE)


HAS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "README.md": has_readme,
    "choosing_cvs.md": has_choosing_cvs,
    "effective_dynamics.md": has_effective_dynamics,
    "running.md": has_running,
    "using_what_you_have.md": has_readme,
}


def test_every_block_says_what_it_is() -> None:
    known = {"python", "toml", "sh", "{eval-rst}", "{toctree}"}
    found = {(page.name, language) for page in PAGES for language, _ in BLOCK.findall(page.read_text())}
    assert not {place for place in found if place[1] not in known}
    assert sum(language == "python" for _, language in found) == len(HAS)
    assert {page for page, language in found if language == "python"} == set(HAS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::openmm_sgm.HiddenStateWarning")  # with so little of everything
@pytest.mark.parametrize("page", [page for page in PAGES if page.name in HAS], ids=lambda page: page.stem)
def test_python_blocks_run(page: Path, small: Path) -> None:
    namespace = HAS[page.name](small)
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=lambda page: page.stem)
def test_system_files_load(page: Path, tmp_path: Path) -> None:
    for code in blocks(page, "toml"):
        assert tomllib.loads(code)["cv"]
        (tmp_path / "system.toml").write_text(code)
        (tmp_path / "topology.pdb").write_bytes((ALANINE / "topology.pdb").read_bytes())
        molecule = sgm.load_system(tmp_path)
        assert [cv.name for cv in molecule.cvs] == ["phi"]


def commands(page: Path, program: str) -> list[list[str]]:
    """The words of each command of a page's shell blocks, comments left out; a synopsis' lines belong together."""
    joined = (re.sub(r"\n +", " ", code) for code in blocks(page, "sh"))
    lines = [shlex.split(line, comments=True) for code in joined for line in code.splitlines()]
    return [words[1:] for words in lines if words and Path(words[0]).name == program]


def is_synopsis(words: list[str]) -> bool:
    return any(word.startswith("[") or "|" in word for word in words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_ones_that_there_are(page: Path) -> None:
    for words in commands(page, "openmm-sgm"):
        if not is_synopsis(words):
            make_parser().parse_args(words)  # ends the test for what the parser refuses
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page, "make"):
        assert words[0] in targets
    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / name).exists() or (page.parent / f"{name}.md").exists(), f"{page.name} links to {name}"


def test_the_synopsis_has_every_option_and_no_other() -> None:
    """Options of the parser and of docs/command_line.md, verb by verb."""
    written: dict[str, set[str]] = {}
    for words in commands(ROOT / "docs" / "command_line.md", "openmm-sgm"):
        written.setdefault(words[0], set()).update(re.findall(r"--[a-z-]+", " ".join(words)))
    verbs = next(action.choices for action in make_parser()._actions if action.dest == "command")
    assert isinstance(verbs, dict)
    there = {
        verb: {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        for verb, parser in verbs.items()
    }
    assert written == {verb: options - {"--help"} for verb, options in there.items()}


@pytest.mark.slow
def test_commands_of_the_readme_run_in_their_order(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a PDB file to a comparison, with the words of the README but for a budget and two methods."""
    (small / "molecule.pdb").write_bytes((ALANINE / "topology.pdb").read_bytes())
    monkeypatch.setattr(cli, "DEFAULT_EVALUATIONS", FEW_EVALUATIONS)
    given = [words for words in commands(ROOT / "README.md", "openmm-sgm") if not is_synopsis(words)]
    assert [words[0] for words in given] == ["new", "run", "status", "run", "compare"]
    for words in given:
        if words[0] == "compare":
            words += ["--budgets", "4000,8000", "--methods", "umbrella,md", "--workers", "0"]
        elif words[0] == "run":
            words += ["--workers", "0"]
        assert cli.main(words) == 0, capsys.readouterr().err
    assert {"report.html", "surface.csv", "samples.dcd"} <= {path.name for path in (small / "results").iterdir()}
    assert (small / "comparison" / "compare.html").is_file()


def test_the_reference_has_every_public_name() -> None:
    written = set(
        re.findall(r"auto(?:class|function|exception|data):: [\w.]+\.(\w+)", (ROOT / "docs" / "api.md").read_text())
    )
    assert set(sgm.__all__) - {"__version__"} - written == set()


@pytest.mark.parametrize("verb", ["new", "run", "train", "compare", "status", "report", "completion"])
def test_help_has_examples_that_the_parser_takes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args([verb, "--help"])
    shown = capsys.readouterr().out
    found = re.findall(r"openmm-sgm ([^)>\n]+)", shown[shown.index("examples:") :])
    assert len(found) >= 1
    assert verb in {make_parser().parse_args(shlex.split(line)).command for line in found}
    assert "Exit codes:" in shown
