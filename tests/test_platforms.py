"""The fastest platform is found, remembered, and survives platforms and caches that do not work."""

import json
from pathlib import Path

import numpy as np
import openmm
import pytest

from openmm_sgm import platforms
from openmm_sgm.platforms import PlatformChoice, assign_devices, cache_directory, choose_platform, platform_properties


@pytest.fixture
def particle(monkeypatch: pytest.MonkeyPatch) -> tuple[openmm.System, np.ndarray]:
    monkeypatch.setattr(platforms, "_TIMING_SECONDS", 0.01)
    system = openmm.System()
    system.addParticle(12.0)
    return system, np.zeros((1, 3))


def test_the_fastest_platform_is_chosen(particle: tuple[openmm.System, np.ndarray]) -> None:
    choice = choose_platform(*particle, cache=None)
    assert choice.steps_per_second[choice.name] == max(choice.steps_per_second.values()) > 0
    assert {"Reference", "CPU"} <= set(choice.steps_per_second)
    assert choice.properties == platform_properties(choice.name)


def test_a_walker_on_the_cpu_platform_has_one_thread() -> None:
    assert platform_properties("CPU") == {"Threads": "1"}
    assert platform_properties("CUDA") == {"Precision": "mixed"}


def test_a_choice_is_remembered_for_its_system_alone(
    particle: tuple[openmm.System, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, positions = particle
    cache = tmp_path / "new" / "platforms.json"
    first = choose_platform(system, positions, cache)
    timed: list[str] = []
    monkeypatch.setattr(platforms, "_time_steps", lambda system, positions, name: timed.append(name) or 1.0)
    assert choose_platform(system, positions, cache) == first
    assert not timed
    system.setParticleMass(0, 13.0)
    choose_platform(system, positions, cache)
    assert timed
    assert [path.name for path in cache.parent.iterdir()] == ["platforms.json"]
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_a_spoilt_cache_is_replaced(particle: tuple[openmm.System, np.ndarray], tmp_path: Path, content: str) -> None:
    cache = tmp_path / "platforms.json"
    cache.write_text(content)
    choice = choose_platform(*particle, cache)
    assert PlatformChoice(**next(iter(json.loads(cache.read_text()).values()))) == choice


def test_an_entry_of_another_version_is_timed_anew(particle: tuple[openmm.System, np.ndarray], tmp_path: Path) -> None:
    cache = tmp_path / "platforms.json"
    choose_platform(*particle, cache)
    cache.write_text(json.dumps({key: {"speed": 3} for key in json.loads(cache.read_text())}))
    assert choose_platform(*particle, cache).steps_per_second


def test_a_cache_that_cannot_be_written_is_no_error(particle: tuple[openmm.System, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert choose_platform(*particle, tmp_path / "file" / "platforms.json").name


def test_a_platform_that_fails_is_passed_over(
    particle: tuple[openmm.System, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_cpu(system: openmm.System, positions: np.ndarray, name: str) -> float:
        if name == "CPU":
            raise openmm.OpenMMException("no device")
        return 5.0

    monkeypatch.setattr(platforms, "_time_steps", no_cpu)
    choice = choose_platform(*particle, cache=None)
    assert choice.name != "CPU"
    assert choice.steps_per_second["CPU"] == 0.0


def test_no_working_platform_gives_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = openmm.System()  # OpenMM refuses a context without particles
    with pytest.raises(RuntimeError, match=r"no OpenMM platform can run this system.*Reference"):
        choose_platform(empty, np.zeros((0, 3)), cache=None)


def test_reference_is_not_timed_on_large_systems(
    particle: tuple[openmm.System, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    system, _ = particle
    for _ in range(2000):
        system.addParticle(1.0)
    timed: list[str] = []
    monkeypatch.setattr(platforms, "_time_steps", lambda system, positions, name: timed.append(name) or 1.0)
    choose_platform(system, np.zeros((2001, 3)), cache=None)
    assert "CPU" in timed
    assert "Reference" not in timed


def test_the_cache_directory_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "openmm_sgm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(platforms.sys, "platform", "darwin")
    assert cache_directory() == tmp_path / "Library" / "Caches" / "openmm_sgm"
    monkeypatch.setattr(platforms.sys, "platform", "linux")
    assert cache_directory() == tmp_path / ".cache" / "openmm_sgm"


def test_devices_are_shared_out_one_a_worker() -> None:
    indices = [properties["DeviceIndex"] for properties in assign_devices("CUDA", 5, 2)]
    assert indices == ["0", "1", "0", "1", "0"]
    assert assign_devices("Reference", 2, None) == [{}, {}]
    with pytest.raises(ValueError, match="at least 1 device"):
        assign_devices("HIP", 2, 0)
    with pytest.raises(ValueError, match="n_workers must be at least 1"):
        assign_devices("CPU", 0, None)
