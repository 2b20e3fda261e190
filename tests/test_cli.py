"""The command line: one sentence and exit code 2 for bad input, and runs that finish, stop half-way and go on.

The run of the tiny molecule that the tests of the run folder and of the report use is made here too.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import csv
import functools
import io
import json
import re
import shlex
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
from matplotlib.figure import Figure
from openmm import app, unit

import openmm_sgm
from openmm_sgm import runfolder
from openmm_sgm.cli import main
from openmm_sgm.networks import NetworkOptions
from openmm_sgm.options import SamplerOptions
from openmm_sgm.report import find_warnings
from openmm_sgm.sampler import ScoreSampler
from openmm_sgm.system_file import load_system
from openmm_sgm.training import TrainingOptions
from openmm_sgm.units import InputError

BUDGET, SEED = 8000, 3
STAGES = ["exploration", "round 1", "round 2", "round 3"]

# A molecule of four atoms, H-O-O-H without charges, whose torsion is free. The CV is the distance of the first H from
# the second O: it is the first angle in disguise, and above 0.24 nm a bond has to be stretched.

BOND_LENGTHS, BEND = (0.1, 0.14, 0.1), 1.9
TOML = """name = "tiny"
topology = "topology.pdb"
system = "system.xml"
temperature_k = 300.0
time_step_fs = 1.0
friction_per_ps = 10.0

[[cv]]
name = "r"
kind = "distance"
atoms = [0, 2]
min = 0.16
max = 0.3
bins = 14
windows = 7
"""


def write_system(folder: Path, *extra: openmm.Force, bonds: str = "01 12 23") -> Path:
    """Write system.toml, system.xml with `extra` forces, and topology.pdb with CONECT records for `bonds`."""
    folder.mkdir(parents=True)
    system = openmm.System()
    for mass in (1.0, 16.0, 16.0, 1.0):
        system.addParticle(mass)
    stretch, bend = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for k, length in enumerate(BOND_LENGTHS):
        stretch.addBond(k, k + 1, length, 1e5)
    bend.addAngle(0, 1, 2, BEND, 60.0)
    bend.addAngle(1, 2, 3, BEND, 200.0)
    for force in (stretch, bend, *extra):
        system.addForce(force)
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    across, along = BOND_LENGTHS[0] * np.sin(BEND), BOND_LENGTHS[0] * np.cos(BEND)
    middle = BOND_LENGTHS[1]
    write_pdb(
        folder / "topology.pdb",
        ("H1", "O2", "O3", "H4"),
        [(along, across, 0.0), (0.0, 0.0, 0.0), (middle, 0.0, 0.0), (middle - along, 0.0, across)],
        bonds,
    )
    (folder / "system.toml").write_text(TOML)
    return folder


def write_pdb(path: Path, names: tuple[str, ...], positions: list[tuple[float, float, float]], bonds: str) -> None:
    """Write one HETATM residue; positions in nm, bonds as pairs of zero-based digits."""
    lines = []
    for k, (name, position) in enumerate(zip(names, positions, strict=True)):
        x, y, z = (f"{10 * value:8.3f}" for value in position)
        lines.append(f"HETATM{k + 1:5d}  {name:<3} MOL A   1    {x}{y}{z}  1.00  0.00           {name[0]}")
    lines += [f"CONECT{int(i) + 1:5d}{int(j) + 1:5d}" for i, j in bonds.split()]
    path.write_text("\n".join([*lines, "END", ""]))


def quick_options() -> SamplerOptions:
    """Options whose training takes a fraction of a second; the command line offers none of them."""
    return SamplerOptions(
        training=TrainingOptions(steps=60, batch_size=256, check_every=30, rows=2000),
        network=NetworkOptions(width=32, hidden=32, conditioning=16),
    )


def run_arguments(system: Path, output: Path, *more: str, budget: int = BUDGET, seed: int = SEED) -> list[str]:
    given = ["run", str(system), "--output", str(output), "--force-evaluations", str(budget), "--seed", str(seed)]
    return [*given, *([] if "--workers" in more else ["--workers", "0"]), *more]


def draw_nothing(figure: Figure, file: io.BytesIO, **options: Any) -> None:
    """Stand in for `Figure.savefig`: most of a tiny run's time would go into the pictures of its report."""
    file.write(base64.b64decode(EMPTY_PICTURE))


EMPTY_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="  # one pixel
)


@dataclass(frozen=True)
class FinishedRun:
    """A run of the tiny molecule by the command line: its folders, what it printed, and the sampler behind it."""

    system: Path
    folder: Path
    stdout: str
    stderr: str
    sampler: ScoreSampler


@functools.cache
def finished_run(base: Path) -> FinishedRun:
    """Return the run that all tests of a session read; `base` is the session's temporary folder."""
    system, folder = write_system(base / "tiny" / "system"), base / "tiny" / "run"
    out, err, samplers = io.StringIO(), io.StringIO(), []

    def write_results(output: Path, sampler: ScoreSampler, command: str) -> dict[str, Any]:
        samplers.append(sampler)
        return original(output, sampler, command)

    original = runfolder.write_results
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("openmm_sgm.sampler.SamplerOptions", quick_options)
        patch.setattr(runfolder, "write_results", write_results)
        code = main(run_arguments(system, folder))
    assert code == 0, err.getvalue()
    return FinishedRun(system, folder, out.getvalue(), err.getvalue(), samplers[0])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run, which no test may change."""
    return finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of the command line train with `quick_options`, and write reports with empty pictures."""
    monkeypatch.setattr("openmm_sgm.sampler.SamplerOptions", quick_options)
    monkeypatch.setattr(Figure, "savefig", draw_nothing)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """The tiny molecule in a folder that a test may spoil."""
    return write_system(tmp_path / "system")


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copied"))


def snapshot(path: Path) -> dict[str, bytes] | bytes | None:
    """Return everything in a folder or file; None where there is none."""
    if not path.exists():
        return None
    if path.is_file():
        return path.read_bytes()
    found = sorted(path.rglob("*"))
    return {str(p.relative_to(path)): b"folder" if p.is_dir() else p.read_bytes() for p in found}


def one_sentence(stderr: str) -> str:
    """Return the sentence that stderr holds, and nothing else."""
    assert stderr.startswith("openmm-sgm: ")
    assert stderr.endswith("\n")
    assert len(stderr.splitlines()) == 1, stderr
    sentence = stderr.removeprefix("openmm-sgm: ").strip()
    assert len(sentence.split()) > 2
    return sentence


def check_refused(capfd: pytest.CaptureFixture[str], arguments: list[str], message: str, untouched: Path) -> None:
    """Check that the arguments get one sentence on stderr and exit code 2, and leave `untouched` as it is."""
    before = snapshot(untouched)
    capfd.readouterr()
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(message, one_sentence(err)), err
    assert snapshot(untouched) == before


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Bad input to `run`


BAD_FILES = {
    "no force field": ('system = "system.xml"\n', "", "needs either force_field"),
    "unknown force field": ('system = "system.xml"', 'force_field = ["unheard.xml"]', "no force field 'unheard.xml'"),
    "no such system.xml": ("system.xml", "missing.xml", "holds no file 'missing.xml'"),
    "atoms out of range": ("[0, 2]", "[0, 4]", "CV 'r' asks for atom 4, but the system has 4 atoms"),
    "negative atom": ("[0, 2]", "[-1, 2]", "CV 'r'.*-1"),
    "no minimum": ("min = 0.16\n", "", "CV 'r' is not periodic and needs a minimum and a maximum"),
    "no maximum": ("max = 0.3\n", "", "CV 'r' is not periodic and needs a minimum and a maximum"),
    "bounds upside down": ("min = 0.16", "min = 0.5", "the minimum must be below the maximum"),
    "unknown key": (
        "temperature_k = 300.0",
        "temperature_k = 300.0\npressure_bar = 1.0",
        "there is no key 'pressure_bar'",
    ),
    "unknown key of a CV": ("bins = 14", "bin = 14", "takes no 'bin'"),
    "a start outside the range": (
        "min = 0.16",
        "min = 0.25",
        "CV 'r' is 0.19[0-9]* nm at the start, outside its range",
    ),
    "one CV twice": (
        TOML[TOML.index("[[cv]]") :],
        TOML[TOML.index("[[cv]]") :] + TOML[TOML.index("[[cv]]") :].replace('"r"', '"s"'),
        "CVs 'r' and 's' are the same",
    ),
    "degrees": (
        'kind = "distance"\natoms = [0, 2]\nmin = 0.16\nmax = 0.3',
        'kind = "angle"\natoms = [0, 1, 2]\nmin = 80\nmax = 140',
        "at most 3.142 rad, got a range from 80 to 140 rad",
    ),
    "a distance below 0": ("min = 0.16", "min = -0.16", "cannot be below 0, got a range from -0.16 to 0.3 nm"),
    "unknown kind of CV": ('"distance"', '"coordination"', "kind must be one of"),
    "not TOML": ("name = ", "name ", "is not valid TOML"),
    "two CVs of one name": (
        TOML[TOML.index("[[cv]]") :],
        2 * TOML[TOML.index("[[cv]]") :],
        "different names",
    ),
    "no CV": (TOML[TOML.index("[[cv]]") :], "", "'cv' is missing"),
    "four CVs": (
        TOML[TOML.index("[[cv]]") :],
        "".join(TOML[TOML.index("[[cv]]") :].replace('"r"', f'"r{k}"') for k in range(4)),
        "one to 3 CVs are supported, got 4",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_system_file(
    case: str, system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None
) -> None:
    old, new, message = BAD_FILES[case]
    edit(system / "system.toml", old, new)
    check_refused(capfd, run_arguments(system, tmp_path / "out"), message, tmp_path / "out")


def test_no_system_folder(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    check_refused(capfd, run_arguments(tmp_path / "nowhere", output), r"nowhere holds no system\.toml", output)
    (system / "system.toml").unlink()
    check_refused(capfd, run_arguments(system, output), r"holds no system\.toml", output)


def test_system_folder_that_is_a_file(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_refused(capfd, run_arguments(system / "system.toml", tmp_path / "out"), "system.toml", tmp_path / "out")


def test_system_file_that_is_no_text(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (system / "system.toml").write_bytes('name = "Größe"\n'.encode("latin-1"))
    check_refused(capfd, run_arguments(system, tmp_path / "out"), "system.toml", tmp_path / "out")


def test_system_xml_that_is_no_text(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (system / "system.xml").write_bytes(b"\xff\xfe<System>")
    check_refused(capfd, run_arguments(system, tmp_path / "out"), "system.xml", tmp_path / "out")


def test_barostat(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    system = write_system(tmp_path / "system", openmm.MonteCarloBarostat(1.0, 300.0))
    message = r"constant volume \(NVT\).*remove the barostat"
    check_refused(capfd, run_arguments(system, tmp_path / "out"), message, tmp_path / "out")


def test_molecule_in_several_pieces(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    system = write_system(tmp_path / "system", bonds="01 23")
    check_refused(capfd, run_arguments(system, tmp_path / "out"), "form 2 pieces", tmp_path / "out")


def test_molecule_without_bonds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    system = write_system(tmp_path / "system", bonds="")
    check_refused(capfd, run_arguments(system, tmp_path / "out"), "the topology has no bonds", tmp_path / "out")


@pytest.mark.parametrize("budget", [0, -5])
def test_budget_not_above_zero(budget: int, system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = f"force_evaluations must be a whole number above zero, got {budget}"
    check_refused(capfd, run_arguments(system, tmp_path / "out", budget=budget), message, tmp_path / "out")


def test_budget_too_small_to_begin(
    system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None
) -> None:
    message = "100 force evaluations are too few"
    check_refused(capfd, run_arguments(system, tmp_path / "out", budget=100), message, tmp_path / "out")


def test_negative_workers(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = run_arguments(system, tmp_path / "out", "--workers", "-1")
    check_refused(capfd, arguments, "workers must be 0 or more, got -1", tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--executor", "parsl"], "--executor parsl and --executor-config FILE go together"),
        (["--executor-config", "workers.toml"], "--executor parsl and --executor-config FILE go together"),
        (["--executor", "parsl", "--executor-config", "nowhere.toml", "--workers", "2"], "--workers is for"),
        (["--platform", "Abacus"], "the platform must be one of Reference, CPU, CUDA"),
        (["--precision", "half"], "the precision must be single, mixed or double, got 'half'"),
    ],
)
def test_executors_and_platforms_that_cannot_be(
    more: list[str], message: str, system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check_refused(capfd, run_arguments(system, tmp_path / "out", *more), message, tmp_path / "out")


def test_copies_of_a_run(
    system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    message = "mpirun has started 4 copies of this run"
    check_refused(capfd, run_arguments(system, tmp_path / "out"), message, tmp_path / "out")


def test_target_error_of_nothing(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = run_arguments(system, tmp_path / "out", "--target-error", "0")
    check_refused(capfd, arguments, "the target error must be above 0 kJ/mol, got 0", tmp_path / "out")


def test_negative_seed(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = "seed must be a whole number, 0 or more, got -1"
    check_refused(capfd, run_arguments(system, tmp_path / "out", seed=-1), message, tmp_path / "out")


def test_folder_that_holds_a_run(finished: FinishedRun, copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = "already holds a run: choose another --output, or continue it with --resume"
    check_refused(capfd, run_arguments(finished.system, copied), message, copied)


def test_output_that_is_a_file(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("mine\n")
    check_refused(capfd, run_arguments(system, file), "is a file, not a folder", file)
    check_refused(capfd, run_arguments(system, file / "below"), "cannot make the folder .*: Not a directory", file)


def test_resume_without_a_state(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    check_refused(capfd, run_arguments(system, output, "--resume"), "holds no run to resume", output)
    output.mkdir()
    (output / "notes.txt").write_text("mine\n")
    check_refused(capfd, run_arguments(system, output, "--resume"), "holds no run to resume", output)


def test_resume_of_another_run(
    finished: FinishedRun, copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = run_arguments(finished.system, copied, "--resume", seed=SEED + 1)
    check_refused(capfd, arguments, f"has seed {SEED}, not {SEED + 1}", copied)
    other = write_system(tmp_path / "other", openmm.HarmonicBondForce())
    check_refused(capfd, run_arguments(other, copied, "--resume"), "is of another setup", copied)


def test_resume_takes_seed_and_budget_from_the_run(
    finished: FinishedRun, copied: Path, capfd: pytest.CaptureFixture[str], quick: None
) -> None:
    before = (copied / "surface.csv").read_bytes()
    assert main(["run", str(finished.system), "--output", str(copied), "--resume", "--workers", "0"]) == 0
    status = json.loads((copied / "status.json").read_text())
    assert (status["seed"], status["budget"]) == (SEED, BUDGET)
    assert (copied / "surface.csv").read_bytes() == before


def test_resume_of_a_run_that_had_saved_nothing(
    finished: FinishedRun, copied: Path, capfd: pytest.CaptureFixture[str], quick: None
) -> None:
    shutil.rmtree(copied / "state")
    assert main(["run", str(finished.system), "--output", str(copied), "--resume", "--workers", "0"]) == 0
    assert "had saved nothing before it ended: it begins anew" in capfd.readouterr().err
    assert (copied / "surface.csv").read_bytes() == (finished.folder / "surface.csv").read_bytes()


def test_a_quick_run_resumes_as_one(
    finished: FinishedRun, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained before its two rounds, it has a budget of its own, and --resume alone knows of both."""
    monkeypatch.setattr("openmm_sgm.options.SamplerOptions", lambda ladder: replace(quick_options(), ladder=ladder))
    output = tmp_path / "out"
    arguments = ["run", str(finished.system), "--output", str(output), "--workers", "0"]
    monkeypatch.setattr("openmm_sgm.cli.DEFAULT_QUICK", BUDGET)
    assert main([*arguments, "--quick"]) == 0
    status = json.loads((output / "status.json").read_text())
    assert (status["quick"], status["budget"]) == (True, BUDGET)
    assert len(json.loads((output / "result.json").read_text())["trainings"]) == 2
    before = (output / "surface.csv").read_bytes()
    assert main([*arguments, "--resume"]) == 0
    assert (output / "surface.csv").read_bytes() == before


def test_quick_goes_without_a_ladder(finished: FinishedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = run_arguments(finished.system, tmp_path / "out", "--quick", "--ladder", "400,500")
    check_refused(capfd, arguments, "goes without --quick", tmp_path / "out")


def test_resume_from_a_damaged_state(finished: FinishedRun, copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = copied / "state" / "state.json"
    path.write_text(path.read_text()[:1000])
    check_refused(capfd, run_arguments(finished.system, copied, "--resume"), "the state in .* is damaged", copied)


# Bad input to `ScoreSampler`, with a Simulation of the user's own


def simulation_of(
    system_folder: Path, integrator: openmm.Integrator | None = None, *extra: openmm.Force
) -> app.Simulation:
    molecule = load_system(system_folder)
    system = copy.deepcopy(molecule.system)
    for force in extra:
        system.addForce(force)
    if integrator is None:
        integrator = openmm.LangevinMiddleIntegrator(310 * unit.kelvin, 5 / unit.picosecond, 1 * unit.femtosecond)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, system, integrator, platform)
    simulation.context.setPositions(molecule.positions)
    return simulation


def check_sampler_refuses(message: str, make: Callable[[], ScoreSampler]) -> None:
    with pytest.raises(openmm_sgm.InputError, match=message) as caught:
        make()
    assert len(str(caught.value).splitlines()) == 1


CVS = (openmm_sgm.Distance("r", (0, 2), 0.16, 0.3),)


def test_sampler_takes_a_good_simulation(system: Path) -> None:
    sampler = openmm_sgm.ScoreSampler(simulation_of(system), CVS, 310 * unit.kelvin, workers=0)
    assert sampler.molecule.temperature_k == pytest.approx(310)
    assert sampler.campaign is None


def test_sampler_refuses_a_contradicting_temperature(system: Path) -> None:
    message = "temperatures contradict each other: 310 K .* and 300 K"
    check_sampler_refuses(message, lambda: openmm_sgm.ScoreSampler(simulation_of(system), CVS, 300 * unit.kelvin))


def test_sampler_refuses_no_temperature(system: Path) -> None:
    message = "VerletIntegrator has no thermostat: give a temperature"
    simulation = simulation_of(system, openmm.VerletIntegrator(0.001))
    check_sampler_refuses(message, lambda: openmm_sgm.ScoreSampler(simulation, CVS))
    assert openmm_sgm.ScoreSampler(simulation, CVS, temperature=300).molecule.temperature_k == 300


def test_sampler_refuses_a_barostat(system: Path) -> None:
    coulomb = openmm.NonbondedForce()  # OpenMM itself takes a barostat only where something is periodic
    coulomb.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    coulomb.setCutoffDistance(0.5)
    for _ in range(4):
        coulomb.addParticle(0.0, 0.1, 0.0)
    simulation = simulation_of(system, None, coulomb, openmm.MonteCarloBarostat(1.0, 310.0))
    check_sampler_refuses(r"constant volume \(NVT\)", lambda: openmm_sgm.ScoreSampler(simulation, CVS))


def test_sampler_refuses_several_pieces(system: Path) -> None:
    whole = simulation_of(system)
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    atoms = [topology.addAtom(atom.name, atom.element, residue) for atom in whole.topology.atoms()]
    topology.addBond(atoms[0], atoms[1])
    topology.addBond(atoms[2], atoms[3])
    platform = openmm.Platform.getPlatformByName("Reference")
    integrator = openmm.LangevinMiddleIntegrator(310.0, 5.0, 0.001)
    simulation = app.Simulation(topology, copy.deepcopy(whole.system), integrator, platform)
    simulation.context.setPositions(whole.context.getState(positions=True).getPositions())
    check_sampler_refuses("form 2 pieces", lambda: openmm_sgm.ScoreSampler(simulation, CVS))


def test_sampler_refuses_two_cvs_of_one_name(system: Path) -> None:
    cvs = [*CVS, openmm_sgm.Distance("r", (1, 3), 0.16, 0.3)]
    check_sampler_refuses("different names", lambda: openmm_sgm.ScoreSampler(simulation_of(system), cvs))


def test_sampler_refuses_bad_numbers(system: Path) -> None:
    simulation = simulation_of(system)
    check_sampler_refuses("got -1", lambda: openmm_sgm.ScoreSampler(simulation, CVS, seed=-1))
    check_sampler_refuses("got -1", lambda: openmm_sgm.ScoreSampler(simulation, CVS, workers=-1))
    check_sampler_refuses("collective variables", lambda: openmm_sgm.ScoreSampler(simulation))
    sampler = openmm_sgm.ScoreSampler(simulation, CVS, workers=0)
    for budget in (0, -1, 0.5, True):
        with pytest.raises(InputError, match="must be a whole number above zero"):
            sampler.run(budget)
    with pytest.raises(InputError, match="nothing has been sampled yet"):
        sampler.surface()


# Arguments that argparse refuses


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk", "system"],
        ["run", "system"],
        ["run", "--output", "out"],
        ["run", "system", "--output", "out", "--force-evaluations", "many"],
        ["run", "system", "--output", "out", "--sed", "1"],
        ["status"],
        ["report", "a", "b"],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_misspelt_arguments(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("usage: openmm-sgm")
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "expected"), [("--version", openmm_sgm.__version__ + "\n"), ("--help", "usage: openmm-sgm")]
)
def test_version_and_help(option: str, expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([option])
    assert caught.value.code == 0
    assert capfd.readouterr().out.startswith(expected)


# A finished run


def test_report_path_is_the_last_line_of_stdout(finished: FinishedRun) -> None:
    assert finished.stdout.splitlines()[-1] == str(finished.folder / "report.html")
    assert (finished.folder / "report.html").is_file()


def test_progress_is_plain_text_without_a_terminal(finished: FinishedRun) -> None:
    lines = finished.stderr.splitlines()
    evidence = next(k for k, line in enumerate(lines) if line.endswith("estimating")) + 1
    # names of CVs and units may hold any character; nothing else does
    assert all(re.fullmatch(r" *\d+\.\d s  [ -~]+", line) for line in lines if "warning: " not in line), finished.stderr
    assert "\r" not in finished.stderr
    assert "\x1b" not in finished.stderr
    stages = [match[1] for line in lines if (match := re.search(r"s  ([^:]+): [\d,]+ force evaluations", line))]
    assert stages == STAGES
    result = json.loads((finished.folder / "result.json").read_text())
    assert f"acceptance {result['acceptance']['median']:.2f}" in lines[evidence]
    assert f"consistency {result['micro_macro_rmse_kj_mol']:.2f}" in lines[evidence + 1]
    assert all("warning: " in line for line in lines[evidence + 2 :])


def test_status_of_a_finished_run(finished: FinishedRun, capfd: pytest.CaptureFixture[str]) -> None:
    before = snapshot(finished.folder)
    assert main(["status", str(finished.folder)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    result = json.loads((finished.folder / "result.json").read_text())
    first, *stages = out.splitlines()
    assert first == f"finished: {result['force_evaluations']['total']:,} of {BUDGET:,} force evaluations"
    warnings = [line for line in stages if line.startswith("warning: ")]
    assert warnings == [f"warning: {text}" for text in find_warnings(finished.folder)]
    *stages, windows = stages[: len(stages) - len(warnings)]
    assert re.fullmatch(r"  \d+ windows, 0 set aside", windows)
    assert [line.strip().partition(":")[0] for line in stages] == STAGES
    assert "acceptance" not in stages[0]
    assert all("acceptance" in line and "kJ/mol" in line for line in stages[1:])
    assert snapshot(finished.folder) == before


def test_report_is_written_anew(finished: FinishedRun, copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (copied / "report.html").write_text("spoilt")
    assert main(["report", str(copied)]) == 0
    assert capfd.readouterr().out == f"{copied / 'report.html'}\n"
    assert (copied / "report.html").read_text() == (finished.folder / "report.html").read_text()
    assert snapshot(copied) == snapshot(finished.folder)


@pytest.mark.parametrize("command", ["status", "report"])
def test_status_and_report_of_no_run(command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    check_refused(capfd, [command, str(empty)], "holds no (finished )?run", tmp_path)
    check_refused(capfd, [command, str(tmp_path / "nowhere")], "holds no (finished )?run", tmp_path)


@pytest.mark.parametrize("text", ["", '{"state": "runn', "[]", "{}"], ids=repr)
def test_status_of_a_damaged_file(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "status.json").write_text(text)
    check_refused(capfd, ["status", str(tmp_path)], r"status\.json is damaged", tmp_path)


def test_one_seed_gives_one_result(finished: FinishedRun, tmp_path: Path, quick: None) -> None:
    assert main(run_arguments(finished.system, tmp_path / "again")) == 0
    again = tmp_path / "again"
    for name in ("surface.csv", "ledger.csv", "weights.csv", "generator/generator.safetensors"):
        assert (again / name).read_bytes() == (finished.folder / name).read_bytes(), name
    # samples.dcd holds the time of day
    one, two = (mdtraj.load(folder / "samples.dcd", top=folder / "topology.pdb") for folder in (again, finished.folder))
    np.testing.assert_array_equal(one.xyz, two.xyz)


def test_nothing_else_is_printed(
    finished: FinishedRun, tmp_path: Path, quick: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """What compiled code prints past Python counts too."""
    assert main(run_arguments(finished.system, tmp_path / "out", budget=5000)) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'out' / 'report.html'}\n"
    strange = [line for line in err.splitlines() if not re.fullmatch(r" *\d+\.\d s  .+", line)]
    assert not strange, f"{len(strange)} lines, the first: {strange[0]}"


def test_molecule_without_a_rotor(tmp_path: Path, quick: None) -> None:
    """Three atoms have two bonds and an angle, and no torsion at all."""
    folder = tmp_path / "system"
    folder.mkdir()
    system = openmm.System()
    for mass in (12.0, 16.0, 12.0):
        system.addParticle(mass)
    stretch, bend = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    stretch.addBond(0, 1, 0.14, 1e5)
    stretch.addBond(1, 2, 0.14, 1e5)
    bend.addAngle(0, 1, 2, BEND, 60.0)
    system.addForce(stretch)
    system.addForce(bend)
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    end = (0.14 * np.cos(BEND), 0.14 * np.sin(BEND), 0.0)
    write_pdb(folder / "topology.pdb", ("C1", "O2", "C3"), [(0.14, 0.0, 0.0), (0.0, 0.0, 0.0), end], "01 12")
    (folder / "system.toml").write_text(TOML.replace("min = 0.16", "min = 0.19"))
    assert main(run_arguments(folder, tmp_path / "out", budget=5000)) == 0
    assert (tmp_path / "out" / "report.html").is_file()


# A run that stops half-way


def interrupt(patch: pytest.MonkeyPatch, name: str, call: int, *, afterwards: bool = False) -> None:
    """Let the `call`-th call of a function of `runfolder` end in Ctrl-C, before it does anything or afterwards."""
    original, calls = getattr(runfolder, name), []

    def function(*arguments: Any) -> Any:
        calls.append(name)
        if len(calls) == call and not afterwards:
            raise KeyboardInterrupt
        result = original(*arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    patch.setattr(runfolder, name, function)


def interrupted_run(system: Path, output: Path, name: str, call: int, *, afterwards: bool = False) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, name, call, afterwards=afterwards)
        assert main(run_arguments(system, output)) == 130


def advised_command(output: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Return the arguments of the command by which `status` says an unfinished run goes on."""
    capfd.readouterr()
    assert main(["status", str(output)]) == 0
    first, *_, last = capfd.readouterr().out.splitlines()
    assert re.match(r"interrupted: [\d,]+ of 8,000 force evaluations", first)
    assert last.startswith("to continue: openmm-sgm run ")
    return shlex.split(last.removeprefix("to continue: "))[1:]


def check_complete(output: Path) -> None:
    """Check that a finished run is whole: the ledger counts without gap or double, and the budget was kept."""
    assert json.loads((output / "status.json").read_text())["state"] == "finished"
    result = json.loads((output / "result.json").read_text())
    cost = result["force_evaluations"]
    assert cost["total"] == cost["simulation"] + cost["generation"] <= BUDGET
    rows = read_rows(output / "ledger.csv")
    assert [int(row["number"]) for row in rows] == list(range(len(rows)))
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    rounds = [int(row["round"]) for row in rows]
    assert rounds == sorted(rounds)
    assert set(rounds) == {1, 2, 3}
    evaluated = sum(row["energy_kj_mol"] != "" for row in rows)
    assert evaluated <= cost["generation"] <= evaluated + 50  # the search for equivalent hydrogens takes a few


STOPS = {
    "before round 1 is saved": ("save_state", 2, False),
    "after round 1 is saved": ("save_state", 2, True),
    "before round 3 is saved": ("save_state", 4, False),
    "when the results are written": ("write_results", 1, False),
    "after the results are written": ("write_results", 1, True),
}


@pytest.mark.parametrize("stop", STOPS)
def test_interrupted_run_goes_on(
    stop: str, system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None
) -> None:
    name, call, afterwards = STOPS[stop]
    output = tmp_path / "out"
    interrupted_run(system, output, name, call, afterwards=afterwards)
    assert capfd.readouterr().err.splitlines()[-1] == "openmm-sgm: interrupted"
    assert json.loads((output / "status.json").read_text())["state"] == "interrupted"
    arguments = advised_command(output, capfd)
    assert arguments == run_arguments(system, output, "--resume")
    assert main(arguments) == 0, capfd.readouterr().err
    assert capfd.readouterr().out.splitlines()[-1] == str(output / "report.html")
    check_complete(output)


def test_resumed_run_has_each_stage_once(
    system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None
) -> None:
    output = tmp_path / "out"
    interrupted_run(system, output, "save_state", 2)
    assert main(run_arguments(system, output, "--resume")) == 0
    history = json.loads((output / "result.json").read_text())["history"]
    assert [record["stage"] for record in history] == STAGES


def test_run_interrupted_while_it_explores_goes_on(
    system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None
) -> None:
    """There is no state yet; whatever `status` advises then must not be refused."""
    output = tmp_path / "out"
    interrupted_run(system, output, "save_state", 1)
    assert main(advised_command(output, capfd)) == 0, capfd.readouterr().err
    check_complete(output)


def test_run_that_cannot_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None) -> None:
    """Dynamics that blows up is no fault of the input's form: exit code 1, and the status says so."""
    system, output = write_system(tmp_path / "system"), tmp_path / "out"
    toml = (system / "system.toml").read_text()
    (system / "system.toml").write_text(re.sub("time_step_fs = .*", "time_step_fs = 10000.0", toml))
    assert main(run_arguments(system, output)) == 1
    out, err = capfd.readouterr()
    assert out == ""
    one_sentence(err.splitlines(keepends=True)[-1])
    assert "Traceback" not in err
    assert main(["status", str(output)]) == 0
    assert capfd.readouterr().out.startswith("failed: ")


def test_status_of_a_killed_run(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None) -> None:
    """A kill leaves the folder as it was at that moment: here, in the middle of round 1."""
    output, killed = tmp_path / "out", tmp_path / "killed"

    def kill(sampler: ScoreSampler) -> None:
        shutil.copytree(output, killed)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openmm_sgm.campaign.Campaign.refine_ode_steps", kill)
        assert main(run_arguments(system, output)) == 130
    capfd.readouterr()
    assert main(["status", str(killed)]) == 0
    first, phase, exploration, _, last = capfd.readouterr().out.splitlines()
    assert re.match(r"killed: [\d,]+ of 8,000 force evaluations", first)
    assert re.match(r"  in round 1, [\d,]+ results since the last save, the latest \d+ s ago", phase)
    assert exploration.strip().startswith("exploration: ")
    assert last == "to continue: " + shlex.join(["openmm-sgm", *run_arguments(system, output), "--resume"])
    assert main(run_arguments(system, killed, "--resume")) == 0
    check_complete(killed)


def test_smallest_budget(system: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], quick: None) -> None:
    """The budget that the refusal of a smaller one names is enough, and Python warns of nothing on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        assert main(run_arguments(system, tmp_path / "out", budget=2000)) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    assert any(row["free_energy_kj_mol"] for row in read_rows(tmp_path / "out" / "surface.csv"))
    assert not [str(warning.message) for warning in caught if issubclass(warning.category, RuntimeWarning)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "painted"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {"TERM": "xterm"}, False),
    ],
)
def test_colours_are_for_terminals_only(
    stream: type[io.StringIO], environment: dict[str, str], painted: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    error = stream()
    with contextlib.redirect_stderr(error):
        assert main(["status", str(tmp_path / "nothing")]) == 2
    said = f"openmm-sgm: {tmp_path / 'nothing'} holds no run"
    assert error.getvalue() == (f"\x1b[31m{said}\x1b[0m\n" if painted else f"{said}\n")
