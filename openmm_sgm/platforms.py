"""The fastest OpenMM platform for one walker, found by timing it, and the sharing out of GPUs among workers.

OpenMM's default is the platform with the highest nominal speed, which for small molecules can be 40 times slower than
`Reference`: a force evaluation of 22 atoms costs less than waking a thread or launching a kernel.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import platform as host
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import openmm

from .files import read_json, write_atomically
from .units import InputError, SamplingError

__all__ = [
    "RANK_VARIABLE",
    "PlatformChoice",
    "PlatformOptions",
    "assign_devices",
    "cache_directory",
    "choose_platform",
    "own_device",
    "platform_properties",
    "worker_rank",
]

_PROPERTIES = {
    "CPU": {"Threads": "1"},  # one walker a core: more walkers beat more threads
    "CUDA": {"Precision": "mixed"},
    "HIP": {"Precision": "mixed"},
    "OpenCL": {"Precision": "mixed"},
}
_GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")
_PRECISIONS = ("single", "mixed", "double")
_DETERMINISTIC = ("CPU", "CUDA", "HIP")
_DEVICE_PROPERTIES = ("DeviceIndex", "OpenCLPlatformIndex")
_VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
RANK_VARIABLE = "OPENMM_SGM_WORKER"
"""In a pool's worker's environment: its number, from 0."""
_thread = threading.local()
_threads = itertools.count()
_TIMING_SECONDS = 0.25
_MOST_REFERENCE_PARTICLES = 2000


def cache_directory() -> Path:
    """Return this package's folder for what can be measured again; it need not exist."""
    if "XDG_CACHE_HOME" in os.environ:
        return Path(os.environ["XDG_CACHE_HOME"]) / "openmm_sgm"
    try:
        home = Path.home()
    except RuntimeError:  # a container's user without an entry in the password file
        return Path(tempfile.gettempdir()) / "openmm_sgm"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "openmm_sgm"


DEFAULT_CACHE = cache_directory() / "platforms.json"


@dataclass(frozen=True)
class PlatformChoice:
    """The platform to run one walker on.

    Attributes
    ----------
    name : the platform's OpenMM name
    properties : platform properties for the `openmm.Context`
    steps_per_second : speed of every platform that could be timed, 0.0 where a platform failed
    """

    name: str
    properties: dict[str, str]
    steps_per_second: dict[str, float]


@dataclass(frozen=True)
class PlatformOptions:
    """Where contexts are made, for who wants to say it.

    Attributes
    ----------
    name : the platform's OpenMM name; None for the fastest here by timing. To be given where workers have other
        devices than the machine that starts the run
    precision : "single", "mixed" or "double" on GPUs. Single precision costs energies the digits that the Metropolis
        test needs; `Reference` is always double, `CPU` single with sums in double
    deterministic_forces : sum forces in an order that does not vary (`DeterministicForces`), a little slower

    Raises
    ------
    InputError
        for an unknown platform or precision.
    """

    name: str | None = None
    precision: str = "mixed"
    deterministic_forces: bool = False

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise InputError(f"the precision must be {', '.join(_PRECISIONS[:-1])} or double, got {self.precision!r}")
        known = ("Reference", *_PROPERTIES)
        if self.name is not None and self.name not in known:
            raise InputError(f"the platform must be one of {', '.join(known)}, got {self.name!r}")

    def properties(self, platform: str) -> dict[str, str]:
        """Return what to give to a context on `platform`: the options that it knows."""
        properties = platform_properties(platform)
        if platform in _GPU_PLATFORMS:
            properties["Precision"] = self.precision
        if self.deterministic_forces and platform in _DETERMINISTIC:
            properties["DeterministicForces"] = "true"
        return properties


def platform_properties(name: str) -> dict[str, str]:
    """Return the properties that this package gives to a context on platform `name`."""
    return dict(_PROPERTIES.get(name, {}))


def choose_platform(
    system: openmm.System,
    positions: np.ndarray,
    cache: Path | None = DEFAULT_CACHE,
    options: PlatformOptions | None = None,
) -> PlatformChoice:
    """Return the platform on which one walker of `system` runs fastest.

    Every platform is timed for about a quarter of a second of Langevin dynamics, the nominally fastest first. One that
    cannot run the system (no device, say) counts as 0 steps per second. `Reference` is left out above 2,000 particles
    when another platform works, because a single step could take seconds there.

    Parameters
    ----------
    system : the system to run
    positions : float, shape (n_atoms, 3), nm; a configuration from which dynamics can start
    cache : JSON file that remembers choices by system, OpenMM version, host and visible devices; None to time anew.
        A file that cannot be read or written only costs the timing.
    options : a platform that is named there is taken; it may be one that only workers have, its speed is unknown then

    Raises
    ------
    SamplingError
        when no platform can run the system; the message gives each platform's reason.
    """
    options = options or PlatformOptions()
    if options.name is not None:
        properties, speeds = options.properties(options.name), {}
        with contextlib.suppress(openmm.OpenMMException):
            speeds[options.name] = _time_steps(system, positions, options.name)
        return PlatformChoice(options.name, properties, speeds)
    choice = _fastest(system, positions, cache)
    return replace(choice, properties=options.properties(choice.name))


def _fastest(system: openmm.System, positions: np.ndarray, cache: Path | None) -> PlatformChoice:
    available = sorted(
        (openmm.Platform.getPlatform(index) for index in range(openmm.Platform.getNumPlatforms())),
        key=lambda platform: -platform.getSpeed(),
    )
    names = [platform.getName() for platform in available]
    key = _cache_key(system, names)
    remembered = _recall(cache, key)
    if remembered is not None and remembered.name in names:
        return remembered

    speeds: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name in names:
        if name == "Reference" and system.getNumParticles() > _MOST_REFERENCE_PARTICLES and any(speeds.values()):
            continue
        try:
            speeds[name] = _time_steps(system, positions, name)
        except openmm.OpenMMException as error:
            speeds[name] = 0.0
            reasons[name] = str(error)
    if not any(speeds.values()):
        raise SamplingError(f"no OpenMM platform can run this system: {reasons}")
    fastest = max(speeds, key=speeds.__getitem__)
    choice = PlatformChoice(fastest, platform_properties(fastest), speeds)
    _remember(cache, key, choice)
    return choice


def assign_devices(platform: str, n_workers: int, n_devices: int | None = None) -> list[dict[str, str]]:
    """Return platform properties that give each worker one device, round-robin; empty ones for CPU platforms.

    With `n_devices` None, OpenMM is asked which devices there are; before 8.5 it cannot say, and all get the first.
    """
    if n_workers < 1:
        raise ValueError(f"n_workers must be at least 1, got {n_workers}")
    if platform not in _GPU_PLATFORMS:
        return [{} for _ in range(n_workers)]
    devices = _find_devices(platform) if n_devices is None else [{"DeviceIndex": str(i)} for i in range(n_devices)]
    if not devices:
        raise ValueError(f"platform {platform} needs at least 1 device, got {n_devices or 'none'}")
    return [dict(devices[worker % len(devices)]) for worker in range(n_workers)]


def worker_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this worker's number on its machine, from 0, by which it chooses its device.

    `WorkerPool` and Parsl tell it; other pools' processes are numbered as they were started, threads as they come.
    """
    for variable in (RANK_VARIABLE, "PARSL_WORKER_RANK"):
        if environment.get(variable, "").isdigit():
            return int(environment[variable])
    identity = multiprocessing.current_process()._identity
    if identity:
        return int(identity[-1]) - 1
    if not hasattr(_thread, "rank"):
        _thread.rank = next(_threads)
    return int(_thread.rank)


def own_device(platform: str) -> dict[str, str]:
    """Return platform properties for this worker's device, of those that it can see; empty for CPU platforms."""
    rank = worker_rank()
    return assign_devices(platform, rank + 1)[rank] if platform in _GPU_PLATFORMS else {}


def _find_devices(platform: str) -> list[dict[str, str]]:
    found = openmm.Platform.getPlatformByName(platform)
    if not hasattr(found, "getDevices"):
        return [{"DeviceIndex": "0"}]
    return [{name: entry[name] for name in _DEVICE_PROPERTIES if name in entry} for entry in found.getDevices()]


def _time_steps(system: openmm.System, positions: np.ndarray, name: str) -> float:
    """Return Langevin steps per second; the number of steps doubles until they fill the time given."""
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.001)
    platform = openmm.Platform.getPlatformByName(name)
    context = openmm.Context(system, integrator, platform, platform_properties(name))
    context.setPositions(np.asarray(positions, dtype=float))
    context.applyConstraints(integrator.getConstraintTolerance())
    context.computeVirtualSites()
    integrator.step(1)  # compiles kernels and builds neighbour lists
    steps = 1
    while True:
        start = time.perf_counter()
        integrator.step(steps)
        context.getState(energy=True)  # waits for a device that runs ahead
        elapsed = time.perf_counter() - start
        if elapsed > _TIMING_SECONDS / 2:
            return steps / elapsed
        steps *= 2


def _cache_key(system: openmm.System, platforms: list[str]) -> str:
    devices = [os.environ.get(variable) for variable in _VISIBLE_DEVICES]
    circumstances = json.dumps([openmm.version.full_version, host.node(), platforms, devices])
    return hashlib.sha256((circumstances + openmm.XmlSerializer.serialize(system)).encode()).hexdigest()


def _read(cache: Path) -> dict:
    try:
        content = read_json(cache)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _recall(cache: Path | None, key: str) -> PlatformChoice | None:
    entry = _read(cache).get(key) if cache else None
    try:
        return PlatformChoice(**entry) if entry else None
    except TypeError:  # written by another version of this package
        return None


def _remember(cache: Path | None, key: str, choice: PlatformChoice) -> None:
    """Add the choice to the file by writing a new one and renaming it: a reader never sees half a file."""
    if cache is None:
        return
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        content = _read(cache) | {key: asdict(choice)}
        write_atomically(cache, json.dumps(content, indent=1))
