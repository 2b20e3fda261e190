"""Rivals whose bias grows during the run: OpenMM's metadynamics, and OPES from the package openmm-opes."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import openmm
from openmm import app, unit
from scipy.interpolate import RegularGridInterpolator

from .cvs import CollectiveVariable
from .executors import one_thread
from .free_energy import Surface
from .platforms import choose_platform
from .system import MolecularSystem
from .umbrella import Snapshot, Stopwatch, surface_bins
from .units import thermal_energy
from .velocities import draw_velocities, make_integrator

__all__ = ["metadynamics", "opes"]

BIAS_FACTOR = 10.0
DEPOSITION_PS = 1.0
METADYNAMICS_HEIGHT = 1.2  # kJ/mol
METADYNAMICS_SIGMA = 0.35  # rad
OPES_BARRIER = 50.0  # kJ/mol
OPES_SIGMA = 0.15  # rad
GRID_POINTS = 101
SIGMA_STEPS = 5_000
SUBPOINTS = 5


def metadynamics(
    molecule: MolecularSystem, seed: int, budgets: Sequence[int], executor: Executor, workers: int
) -> Iterator[Snapshot]:
    """OpenMM's well-tempered `Metadynamics`; surface −γ/(γ − 1) V, no error bars.

    Alanine dipeptide's settings in PLUMED's own tutorials and in inputs of its authors (PLUMED-NEST 19.000 and 19.068):
    Gaussians of 1.2 kJ/mol and 0.35 rad every 500 steps of 2 fs, bias factor 10. Bins where no bias has grown (under a
    tenth of one Gaussian) count as not sampled.
    """

    def build(system: openmm.System, variables: list[app.BiasVariable]) -> app.Metadynamics:
        return app.Metadynamics(
            system, variables, molecule.temperature_k * unit.kelvin, BIAS_FACTOR,
            METADYNAMICS_HEIGHT * unit.kilojoule_per_mole, _deposition_steps(molecule),
        )  # fmt: skip

    def read(sampler: Any) -> np.ndarray:
        values = sampler.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
        least = 0.1 * METADYNAMICS_HEIGHT * BIAS_FACTOR / (BIAS_FACTOR - 1)
        return np.where(values < -least, values, np.nan)

    yield from _grown_bias(molecule, seed, budgets, build, read, METADYNAMICS_SIGMA, 0.5, None)


def opes(
    molecule: MolecularSystem, seed: int, budgets: Sequence[int], executor: Executor, workers: int
) -> Iterator[Snapshot]:
    """openmm-opes 0.2: `OPES` as in its README for alanine dipeptide in vacuum; no error bars.

    Barrier 50 kJ/mol, bias factor 10, a kernel every picosecond, fixed bandwidth of 0.15 rad, 101 grid points, surface
    with its smoothing correction. Bins higher than the barrier, where its bias is flat, count as not sampled.
    """
    package = importlib.import_module("openmm_opes")

    def build(system: openmm.System, variables: list[app.BiasVariable]) -> Any:
        return package.OPES(
            system, variables, molecule.temperature_k * unit.kelvin, OPES_BARRIER * unit.kilojoule_per_mole,
            _deposition_steps(molecule), None, biasFactor=BIAS_FACTOR,
            bounded=any(cv.period is None for cv in molecule.cvs),
        )  # fmt: skip

    def read(sampler: Any) -> np.ndarray:
        values = sampler.getFreeEnergy(correctSmoothing=True).value_in_unit(unit.kilojoule_per_mole)
        lowest = np.min(values[np.isfinite(values)], initial=np.inf)  # there is nothing before the first kernel
        return np.where(values < lowest + OPES_BARRIER, values, np.nan)

    yield from _grown_bias(molecule, seed, budgets, build, read, OPES_SIGMA, 1.0, GRID_POINTS)


def _deposition_steps(molecule: MolecularSystem) -> int:
    return max(1, round(1000 * DEPOSITION_PS / molecule.time_step_fs))


def _grown_bias(
    molecule: MolecularSystem,
    seed: int,
    budgets: Sequence[int],
    build: Callable[[openmm.System, list[app.BiasVariable]], Any],
    read: Callable[[Any], np.ndarray],
    torsion_sigma: float,
    share_of_spread: float,
    grid_points: int | None,
) -> Iterator[Snapshot]:
    """Run a sampler with the interface of `openmm.app.Metadynamics` and read its free energy at each budget.

    The width along a torsion is the published one; along any other CV it is `share_of_spread` of the CV's standard
    deviation in a short unbiased run, which is counted (PLUMED's tutorials: a half or a third for metadynamics; OPES is
    defined by the standard deviation itself).
    """
    clock, spent = Stopwatch(), 0
    words = np.random.SeedSequence(seed).generate_state(3) % (2**31 - 2) + 1
    with clock.running():
        widths = [torsion_sigma] * len(molecule.cvs)
        if any(not _is_torsion(cv) for cv in molecule.cvs):
            spread, spent = _spread(molecule, int(words[0]))
            widths = [
                torsion_sigma if _is_torsion(cv) else share_of_spread * s
                for cv, s in zip(molecule.cvs, spread, strict=True)
            ]
        variables = [
            app.BiasVariable(cv.force(), cv.minimum, cv.maximum, float(width), cv.period is not None, grid_points)
            for cv, width in zip(molecule.cvs, widths, strict=True)
        ]
        system = openmm.XmlSerializer.deserialize(molecule.physical_xml)
        for cv in molecule.cvs:
            if cv.period is None:
                system.addForce(_wall(cv, molecule.temperature_k))
        sampler = build(system, variables)
        simulation = _simulation(molecule, system, int(words[1]))
        spent += draw_velocities(simulation.context, molecule.temperature_k, np.random.default_rng(words[2]))
    for budget in budgets:
        with clock.running(), one_thread():
            if budget > spent:
                sampler.step(simulation, budget - spent)
                spent = budget
        started = time.perf_counter()
        surface = _binned(molecule, read(sampler))
        yield Snapshot(budget, spent, clock.seconds + time.perf_counter() - started, surface)


def _is_torsion(cv: CollectiveVariable) -> bool:
    return cv.unit == "rad" and cv.period is not None


def _simulation(molecule: MolecularSystem, system: openmm.System, seed: int) -> app.Simulation:
    """Return a simulation at the start, on the fastest platform, with the integrator that all methods use."""
    choice = choose_platform(system, molecule.positions)
    integrator = make_integrator(
        molecule.integrator, molecule.temperature_k, molecule.friction_per_ps, molecule.time_step_fs / 1000
    )
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName(choice.name)
    simulation = app.Simulation(molecule.topology, system, integrator, platform, choice.properties)
    simulation.context.setPositions(molecule.positions)
    simulation.context.applyConstraints(1e-6)
    simulation.context.computeVirtualSites()
    return simulation


def _spread(molecule: MolecularSystem, seed: int) -> tuple[np.ndarray, int]:
    """Return each CV's standard deviation in `SIGMA_STEPS` of dynamics from the start, and the force evaluations."""
    simulation = _simulation(molecule, openmm.XmlSerializer.deserialize(molecule.physical_xml), seed)
    drawn = draw_velocities(simulation.context, molecule.temperature_k, np.random.default_rng(seed))
    positions = []
    for _ in range(SIGMA_STEPS // 50):
        simulation.integrator.step(50)
        positions.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)
    cvs = molecule.evaluate_cvs(np.array(positions))
    offsets = np.stack([cv.difference(x, x[0]) for cv, x in zip(molecule.cvs, cvs.T, strict=True)])
    return np.asarray(offsets.std(axis=1)), SIGMA_STEPS + drawn


def _wall(cv: CollectiveVariable, temperature_k: float) -> openmm.Force:
    """Return a harmonic wall outside the range of a CV, whose bias ends there: one kT at a fiftieth of the range."""
    assert cv.minimum is not None
    assert cv.maximum is not None
    constant = 2 * thermal_energy(temperature_k) / (0.02 * (cv.maximum - cv.minimum)) ** 2
    wall = openmm.CustomCVForce(
        f"0.5*{constant!r}*(max(0, value-{float(cv.maximum)!r})^2 + max(0, {float(cv.minimum)!r}-value)^2)"
    )
    wall.addCollectiveVariable("value", cv.force())
    return wall


def _binned(molecule: MolecularSystem, values: np.ndarray) -> Surface:
    """Return a free energy on grid points (last CV first in the shape, ends included) as a surface of bins.

    Each bin's is −kT log of the mean of exp(−F/kT) over `SUBPOINTS` points a CV, interpolated linearly. A bin is NaN
    where its centre's grid points are.
    """
    kt = thermal_energy(molecule.temperature_k)
    edges, names, units = surface_bins(molecule)
    values = values.transpose()
    axes = [np.linspace(edge[0], edge[-1], n) for edge, n in zip(edges, values.shape, strict=True)]
    lowest = np.nanmin(values) if np.isfinite(values).any() else 0.0
    fine = [
        (edge[:-1, None] + (edge[1:] - edge[:-1])[:, None] * (np.arange(SUBPOINTS) + 0.5) / SUBPOINTS).ravel()
        for edge in edges
    ]
    points = np.stack(np.meshgrid(*fine, indexing="ij"), axis=-1)
    filled = np.where(np.isnan(values), np.nanmax(values, initial=lowest), values)
    interpolated = RegularGridInterpolator(axes, filled)(points)
    shape = [k for edge in edges for k in (len(edge) - 1, SUBPOINTS)]
    inner = tuple(range(1, 2 * len(edges), 2))
    free_energy = -kt * np.log(np.exp(-(interpolated - lowest) / kt).reshape(shape).mean(axis=inner))
    centers = np.stack(np.meshgrid(*[0.5 * (e[1:] + e[:-1]) for e in edges], indexing="ij"), axis=-1)
    known = RegularGridInterpolator(axes, np.isfinite(values).astype(float), method="nearest")(centers) > 0.5
    free_energy = np.where(known, free_energy, np.nan)
    if known.any():
        free_energy = free_energy - np.nanmin(free_energy)
    return Surface(free_energy, np.full(free_energy.shape, np.nan), tuple(edges), tuple(names), tuple(units))
