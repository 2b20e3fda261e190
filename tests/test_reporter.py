"""`FrameReporter`: it does not disturb the simulation, and what it writes survives kills and damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openmm
import pytest
from analytic import RANGE_NM, TEMPERATURE_K, triatomic, triatomic_simulation
from openmm import app, unit

import openmm_sgm as sgm
from openmm_sgm.cvs import CollectiveVariable
from openmm_sgm.units import InputError

INTERVAL, SHARD = 7, 10
TESTS = Path(__file__).parent


def bond() -> list[CollectiveVariable]:
    return [sgm.Distance("r", (0, 1), *RANGE_NM)]


def recorded(folder: Path, frames: int = 25) -> tuple[app.Simulation, sgm.FrameReporter]:
    """Run the three-atom molecule with a reporter that has not been closed."""
    simulation = triatomic_simulation()
    reporter = sgm.FrameReporter(folder, INTERVAL, bond(), shard_frames=SHARD)
    simulation.reporters.append(reporter)
    simulation.step(frames * INTERVAL)
    return simulation, reporter


def positions(simulation: app.Simulation) -> np.ndarray:
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def test_the_simulation_runs_as_without_it(tmp_path: Path) -> None:
    """Bit for bit. Broken on purpose: fails when `report` sets positions, or velocities, to what they are in single
    precision, and when it takes a step of its own."""
    alone = triatomic_simulation()
    alone.step(60 * INTERVAL)  # before the other begins: on this platform all share one source of noise
    observed = recorded(tmp_path, 60)[0]
    assert alone.currentStep == observed.currentStep
    np.testing.assert_array_equal(positions(observed), positions(alone))


def test_frames_are_those_of_the_simulation(tmp_path: Path) -> None:
    _, reporter = recorded(tmp_path)
    reporter.close()
    frames = sgm.load_frames(tmp_path)
    assert (len(frames), frames.cv_names, frames.temperature_k, frames.left_out) == (25, ("r",), TEMPERATURE_K, ())
    np.testing.assert_array_equal(frames.steps, INTERVAL * np.arange(1, 26))
    again = triatomic_simulation()
    assert frames.forces is not None
    assert frames.energies is not None
    for k in range(25):
        again.step(INTERVAL)
        state = again.context.getState(positions=True, forces=True, energy=True)
        np.testing.assert_array_equal(frames.positions[k], state.getPositions(asNumpy=True)._value)
        np.testing.assert_allclose(frames.forces[k], state.getForces(asNumpy=True)._value, rtol=1e-12)
        assert frames.energies[k] == pytest.approx(state.getPotentialEnergy()._value, rel=1e-12)
    r = np.linalg.norm(frames.positions[:, 0] - frames.positions[:, 1], axis=1)
    np.testing.assert_allclose(frames.cvs[:, 0], r, atol=1e-6)


def test_the_last_incomplete_file_is_written_when_the_reporter_goes(tmp_path: Path) -> None:
    simulation, reporter = recorded(tmp_path)
    assert len(sgm.load_frames(tmp_path)) == 20
    simulation.reporters.clear()
    del reporter
    assert len(sgm.load_frames(tmp_path)) == 25


def test_frames_can_be_read_while_the_script_runs_and_after_a_kill(tmp_path: Path) -> None:
    script = (
        "from test_reporter import recorded; from pathlib import Path; import sys\nrecorded(Path(sys.argv[1]), 10**8)\n"
    )
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    try:
        while not list(tmp_path.glob("frames-*.npz")):
            assert child.poll() is None, child.stderr.read() if child.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
        live = sgm.load_frames(tmp_path)
        assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    after = sgm.load_frames(tmp_path)
    assert live.left_out == after.left_out == ()
    assert len(after) >= len(live) >= SHARD
    assert len(after) % SHARD == 0
    np.testing.assert_array_equal(after.steps, INTERVAL * np.arange(1, len(after) + 1))


def test_damaged_files_are_left_out_and_named(tmp_path: Path) -> None:
    """Broken on purpose: without the shape check, the file with forces of another molecule stops the reading."""
    _, reporter = recorded(tmp_path, 60)
    reporter.close()
    shards = sorted(tmp_path.glob("frames-*.npz"))
    assert len(shards) == 6
    shards[0].write_bytes(shards[0].read_bytes()[:1000])
    content = bytearray(shards[1].read_bytes())
    content[len(content) // 2] ^= 1
    shards[1].write_bytes(bytes(content))
    shards[2].unlink()
    with np.load(shards[3]) as archive:
        arrays = {name: archive[name] for name in archive}
    np.savez(shards[3], **(arrays | {"forces": arrays["forces"][:, :2]}))
    np.savez(shards[4], **(arrays | {"energies": np.array([object()] * SHARD)}))
    (tmp_path / "frames-000009.npz.tmp").write_bytes(b"half")
    frames = sgm.load_frames(tmp_path)
    assert len(frames) == SHARD
    assert frames.steps[0] == INTERVAL * (5 * SHARD + 1)
    assert len(frames.left_out) == 5
    for text in ("000000.npz is damaged", "000001.npz is damaged", "files 2 to 2 are missing", "forces has shape"):
        assert any(text in line for line in frames.left_out), frames.left_out
    shards[5].write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no frames.*000005\.npz is damaged"):
        sgm.load_frames(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "holds no frames.json"),
        (lambda path: path.write_text("{"), "is damaged"),
        (lambda path: path.write_text("[]"), "is damaged"),
        (lambda path: path.write_text(json.dumps({"schema_version": 1})), "names no masses"),
        (lambda path: path.write_text(json.dumps({"schema_version": 9})), "schema version 9, this program reads 1"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    recorded(tmp_path)
    spoil(tmp_path / "frames.json")
    with pytest.raises(InputError, match=message):
        sgm.load_frames(tmp_path)


def test_a_second_script_adds_to_the_folder_unless_it_is_of_another_simulation(tmp_path: Path) -> None:
    recorded(tmp_path)[1].close()
    recorded(tmp_path)[1].close()
    assert len(sgm.load_frames(tmp_path)) == 50
    simulation = triatomic_simulation()
    simulation.integrator.setTemperature(310 * unit.kelvin)
    simulation.reporters.append(sgm.FrameReporter(tmp_path, INTERVAL, bond()))
    with pytest.raises(InputError, match="another simulation, in temperature_k"):
        simulation.step(1)


def test_bad_arguments_and_simulations_are_refused(tmp_path: Path) -> None:
    for interval in (0, -1, 2.5, True):
        with pytest.raises(InputError, match="interval must be a whole number"):
            sgm.FrameReporter(tmp_path, interval, bond())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one to 3 CVs"):
        sgm.FrameReporter(tmp_path, 1, [])
    molecule = triatomic()
    molecule.system.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    integrator = openmm.VerletIntegrator(0.001)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, triatomic().system, integrator, platform)
    simulation.system.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    simulation.context.setPositions(molecule.positions)
    simulation.reporters.append(sgm.FrameReporter(tmp_path / "new", 1, bond()))
    with pytest.raises(InputError, match="remove the barostat"):
        simulation.step(1)
    assert not (tmp_path / "new").exists()


def test_a_position_is_recorded_where_it_is(tmp_path: Path) -> None:
    """Particles that are tied to a place are not centred before their CVs are computed; seen to fail when they are."""
    topology = app.Topology()
    topology.addAtom("A", app.element.carbon, topology.addResidue("X", topology.addChain()))
    system, well = openmm.System(), openmm.CustomExternalForce("10*((x-1)^2+y^2+z^2)")
    system.addParticle(12.0)
    well.addParticle(0, [])
    system.addForce(well)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, system, openmm.LangevinMiddleIntegrator(300, 1, 0.002), platform)
    simulation.context.setPositions([[1, 0, 0]])
    place = sgm.Position("x", (0,), "x", minimum=-3.0, maximum=3.0)
    simulation.reporters.append(sgm.FrameReporter(tmp_path / "frames", 10, [place]))
    simulation.step(50)
    simulation.reporters.pop().close()
    frames = sgm.load_frames(tmp_path / "frames")
    np.testing.assert_allclose(frames.cvs, frames.positions[:, 0, :1], atol=1e-6)
