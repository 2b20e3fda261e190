"""How often windows planted in a wrong state are found, and how often good ones are accused, over 100 data sets each.

    python benchmarks/detector.py [SEED]

Data sets are cut from pools of umbrella windows simulated by the package (Reference platform): 20, 50 or 100
successive frames of each window from a random place. One to three windows are replaced by the same windows simulated
from a wrong start:

- cis: capped alanine over (φ, ψ), one of its two peptide bonds cis
- mirror image: the same with D-alanine
- phi: ψ alone as CV, windows in φ > 0 among others in φ < 0
- chi1: capped valine over (φ, ψ), another rotamer of the side chain

and the rest have nothing planted: capped alanine over (φ, ψ) and over ψ, valine, and a chain of five beads over one
torsion whose other torsion, hidden, changes basins often or seldom. What the pools hold is known from the torsions
themselves, not from the detector: windows of a good pool that left their state at any time are left out, and so are
planted ones that left theirs.
"""

from __future__ import annotations

import json
import platform as host
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from openmm_sgm.campaign import Campaign
from openmm_sgm.cvs import Torsion
from openmm_sgm.explore import explore
from openmm_sgm.frames import Frames
from openmm_sgm.hidden import HiddenStates, Observable, find_hidden_states, observables_of
from openmm_sgm.options import SamplerOptions
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system
from openmm_sgm.windows import WindowGrid

ROOT = Path(__file__).parents[1]
DATA_SETS = 100
SEED = 0
"""The thresholds of `openmm_sgm.hidden` were chosen on the pools of seed 0; others are new to them."""
LENGTHS = (20, 50, 100)
SETTLE = 400
"""Steps between a window's first visit and its first frame."""


@dataclass(frozen=True)
class Pool:
    """Windows simulated from one start: their frames' CVs and observables."""

    grid: WindowGrid
    windows: np.ndarray
    cvs: np.ndarray
    observables: list[Observable]

    def values(self, name: str) -> np.ndarray:
        return next(o.values for o in self.observables if o.name == name)

    def only(self, keep: np.ndarray) -> Pool:
        """Return the pool of the windows all of whose frames are to be kept; bool, shape (n,)."""
        rows = np.isin(self.windows, np.unique(self.windows[~keep]), invert=True)
        parts = [replace(o, values=o.values[rows]) for o in self.observables]
        return replace(self, windows=self.windows[rows], cvs=self.cvs[rows], observables=parts)


def simulate(
    molecule: MolecularSystem, frames: int, seed: int, interval: int = 20, budget: int = 10**7, height: float = 30.0
) -> Pool:
    """Visit windows up to `height` (kJ/mol) by pulling, as a run does, and simulate each for `frames` frames."""
    options = SamplerOptions(explore_height=height, frame_interval=interval, exploration_steps=200, md_steps=interval)
    campaign = Campaign(molecule, options, np.random.SeedSequence([SEED, seed] if SEED else seed), lambda line: None)
    explore(campaign, budget, generate=False)
    sound = np.array([w for w in sorted(campaign.walkers) if not campaign.walkers[w].failure])
    campaign.simulate(sound, SETTLE)
    before = len(campaign.chain)
    campaign.simulate(sound, frames * interval)
    chain = Frames.concatenate(campaign.chain[before:])
    positions = chain.positions - chain.positions.mean(axis=1, keepdims=True)
    observables = observables_of(molecule.trajectory(positions), chain.energies)
    return Pool(campaign.grid, chain.windows, chain.cvs, observables)


def data_set(
    good: Pool, wrong: Pool | None, length: int, planted: np.ndarray, rng: np.random.Generator
) -> HiddenStates:
    """Cut `length` frames of each window from the pools, those of `planted` windows from the wrong one."""
    parts = []
    for window in np.unique(good.windows):
        pool = wrong if wrong is not None and window in planted else good
        rows = np.flatnonzero(pool.windows == window)
        start = rng.integers(len(rows) - length + 1)
        parts.append((pool, rows[start : start + length]))
    observables = [
        replace(o, values=np.concatenate([pool.observables[k].values[rows] for pool, rows in parts]))
        for k, o in enumerate(good.observables)
    ]
    cvs = np.concatenate([pool.cvs[rows] for pool, rows in parts])
    windows = np.concatenate([pool.windows[rows] for pool, rows in parts])
    return find_hidden_states(
        observables, windows, lambda rows, k: good.grid.reduced_bias(cvs[rows], good.grid.centers[k])
    )


def measure(
    name: str, good: Pool, wrong: list[tuple[Pool, str]], seed: int, lengths: tuple[int, ...] = LENGTHS
) -> dict[str, object]:
    """Return the rates over the data sets of a kind; `wrong` are pools to plant from, and what tells them apart."""
    rng = np.random.default_rng([SEED, seed] if SEED else seed)
    started = time.perf_counter()
    planted_windows = found = named = blamed = alarms = accused = 0
    alarms_by_length = {str(length): 0 for length in lengths}
    by_length = {str(length): [0, 0] for length in lengths}
    for k in range(DATA_SETS):
        length = lengths[k % len(lengths)]
        pool, observable = wrong[k // len(lengths) % len(wrong)] if wrong else (None, "")
        planted = np.zeros(0, dtype=int)
        if pool is not None:
            both = np.intersect1d(good.windows, pool.windows)
            planted = rng.choice(both, size=rng.integers(1, 4), replace=False)
        result = data_set(good, pool, length, planted, rng)
        blame = result.blamed()
        names = {
            int(w): {d.observable for d in result.disagreements if w in (d.first, d.second)}
            | set(blame.get(int(w), ()))
            for w in planted
        }
        planted_windows += len(planted)
        found += sum(bool(n) for n in names.values())
        named += sum(observable in n for n in names.values())
        blamed += sum(int(w) in blame for w in planted)
        alarm = any(not {d.first, d.second} & set(names) for d in result.disagreements)
        alarms += alarm
        alarms_by_length[str(length)] += alarm
        accused += bool(set(blame) - set(names))
        by_length[str(length)][0] += sum(bool(n) for n in names.values())
        by_length[str(length)][1] += len(planted)
    row: dict[str, object] = {"kind": name, "windows": len(np.unique(good.windows)), "data_sets": DATA_SETS}
    if wrong:
        row |= {
            "planted_windows": planted_windows,
            "found": round(found / planted_windows, 4),
            "found_and_named": round(named / planted_windows, 4),
            "blamed": round(blamed / planted_windows, 4),
            "found_by_frames_per_window": {n: f"{hit} of {of}" for n, (hit, of) in by_length.items()},
        }
    return row | {
        "false_alarms": round(alarms / DATA_SETS, 4),
        "false_alarms_by_frames_per_window": alarms_by_length,
        "good_windows_blamed": round(accused / DATA_SETS, 4),
        "seconds_per_data_set": round((time.perf_counter() - started) / DATA_SETS, 3),
    }


# Molecules


def changed(molecule: MolecularSystem, **changes: object) -> MolecularSystem:
    """Return the molecule with some fields replaced."""
    return MolecularSystem(**{field.name: getattr(molecule, field.name) for field in fields(molecule)} | changes)


def turned(molecule: MolecularSystem, axis: tuple[int, int], moved: range, angle: float) -> MolecularSystem:
    """Return the molecule with `moved` atoms turned about the bond `axis` by `angle` (Rodrigues' formula)."""
    x = molecule.positions.copy()
    n = (x[axis[1]] - x[axis[0]]) / np.linalg.norm(x[axis[1]] - x[axis[0]])
    v = x[list(moved)] - x[axis[1]]
    x[list(moved)] = x[axis[1]] + v * np.cos(angle) + np.cross(n, v) * np.sin(angle)
    x[list(moved)] += np.outer(v @ n, n) * (1 - np.cos(angle))
    return changed(molecule, positions=x)


def valine(alanine: MolecularSystem, rotamer: int) -> MolecularSystem:
    """Return capped valine, its two CG where two of alanine's three HB are; `rotamer` 0 to 2 chooses which."""
    topology, positions = app.Topology(), []
    chain = topology.addChain()
    hydrogens = np.roll([11, 12, 13], rotamer)
    for residue in alanine.topology.residues():
        new = topology.addResidue("VAL" if residue.name == "ALA" else residue.name, chain)
        for atom in residue.atoms():
            if atom.element.symbol != "H":
                topology.addAtom(atom.name, atom.element, new)
                positions.append(alanine.positions[atom.index])
            if atom.name == "CB":
                for name, hydrogen in zip(("CG1", "CG2"), hydrogens[:2], strict=True):
                    topology.addAtom(name, app.element.carbon, new)
                    arm = alanine.positions[hydrogen] - alanine.positions[10]
                    positions.append(alanine.positions[10] + arm * 0.153 / np.linalg.norm(arm))
    topology.createStandardBonds()
    field = app.ForceField("amber99sbildn.xml")
    modeller = app.Modeller(topology, np.array(positions) * unit.nanometer)
    modeller.addHydrogens(field)
    system = field.createSystem(modeller.topology, constraints=app.HBonds)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    x = context.getState(positions=True).getPositions(asNumpy=True)._value
    index = {(a.residue.name, a.name): a.index for a in modeller.topology.atoms()}
    cvs = [
        Torsion("phi", [index[k] for k in (("ACE", "C"), ("VAL", "N"), ("VAL", "CA"), ("VAL", "C"))]),
        Torsion("psi", [index[k] for k in (("VAL", "N"), ("VAL", "CA"), ("VAL", "C"), ("NME", "N"))]),
    ]
    return MolecularSystem("capped_valine", modeller.topology, system, x, tuple(cvs), 300.0)


def beads(barrier: float) -> MolecularSystem:
    """Return a chain of five beads with threefold torsions of this barrier (kJ/mol); the CV is the first of the two."""
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("CHN", topology.addChain())
    atoms = [topology.addAtom(f"C{k}", app.element.carbon, residue) for k in range(5)]
    bond, angle, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for k in range(5):
        system.addParticle(14.0)
        if k > 0:
            topology.addBond(atoms[k - 1], atoms[k])
            bond.addBond(k - 1, k, 0.153, 1e5)
        if k > 1:
            angle.addAngle(k - 2, k - 1, k, np.radians(112), 500.0)
        if k > 2:
            torsion.addTorsion(k - 3, k - 2, k - 1, k, 3, 0.0, barrier / 2)
    for force in (bond, angle, torsion):
        system.addForce(force)
    x = np.array([[0.127 * k, 0.085 * (k % 2), 0.0] for k in range(5)])
    return MolecularSystem(f"beads_{barrier:g}", topology, system, x, (Torsion("first", (0, 1, 2, 3)),), 300.0)


def all_within(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """Return which angles (rad) lie within `width` degrees of `center` degrees."""
    return np.abs(np.angle(np.exp(1j * (values - np.radians(center))))) < np.radians(width)


OMEGAS = ("torsion ACE1-C ALA2-N", "torsion ALA2-C NME3-N")
PHI, PSI, CHI1 = "torsion ALA2-N ALA2-CA", "torsion ALA2-CA ALA2-C", "torsion VAL2-CA VAL2-CB"


def kinds() -> dict[str, Callable[[], list[dict[str, object]]]]:
    alanine = load_system(ROOT / "systems" / "alanine_dipeptide_vacuum")

    def two_dimensions() -> list[dict[str, object]]:
        good = simulate(alanine, 300, 1)
        for omega in OMEGAS:
            good = good.only(all_within(good.values(omega), 180, 90))
        wrong = []
        for omega, axis, moved in zip(OMEGAS, ((4, 6), (14, 16)), (range(7, 22), range(17, 22)), strict=True):
            pool = simulate(turned(alanine, axis, moved, np.pi), 110, 2 + len(wrong), budget=60_000)
            wrong.append((pool.only(all_within(pool.values(omega), 0, 90)), omega))
        mirror = simulate(changed(alanine, positions=alanine.positions * [-1, 1, 1]), 110, 4, budget=60_000)
        return [
            measure("nothing, φ and ψ", good, [], 11),
            measure("cis", good, wrong, 12),
            measure("mirror image", good, [(mirror, "handedness of ALA2-CA")], 13),
        ]

    def one_dimension() -> list[dict[str, object]]:
        psi = changed(alanine, cvs=alanine.cvs[1:], bins=())
        good, short = simulate(psi, 200, 5, interval=200), simulate(psi, 400, 6)
        angle = np.radians(60) - alanine.evaluate_cvs(alanine.positions[None])[0, 0]
        other = simulate(turned(psi, (6, 8), range(9, 22), angle), 110, 7, interval=200)
        good, short = (pool.only(~all_within(pool.values(PHI), 60, 60)) for pool in (good, short))
        other = other.only(all_within(other.values(PHI), 60, 60))
        return [
            measure("nothing, ψ", good, [], 14),
            measure("nothing, ψ, windows of 0.8 to 4 ps", short, [], 15),
            measure("phi", good, [(other, PHI)], 16),
        ]

    def side_chain() -> list[dict[str, object]]:
        pools = [simulate(valine(alanine, k), 300 if k == 0 else 110, 8 + k, budget=60_000) for k in range(3)]
        kept = []
        for pool in pools:
            counts, edges = np.histogram(np.degrees(pool.values(CHI1)), bins=36, range=(-180, 180))
            kept.append(pool.only(all_within(pool.values(CHI1), edges[counts.argmax()] + 5, 60)))
        return [
            measure("nothing, valine", kept[0], [], 17),
            measure("chi1", kept[0], [(pool, CHI1) for pool in kept[1:]], 18),
        ]

    def chain() -> list[dict[str, object]]:
        rows = []
        for barrier, lengths in ((12.0, LENGTHS), (12.0, (50, 100, 200)), (16.0, (100, 200, 400))):
            pool = simulate(beads(barrier), 3 * lengths[-1], 19, 200)
            basin = np.floor((pool.values("torsion CHN1-C2 CHN1-C3") % (2 * np.pi)) / (2 * np.pi / 3))
            changes = np.mean((np.diff(basin) != 0) & (np.diff(pool.windows) == 0)) * np.array(lengths)
            row = measure(f"nothing, beads, hidden barrier {barrier:g} kJ/mol", pool, [], 20, lengths)
            rows.append(row | {"changes_of_basin_per_window": dict(zip(lengths, changes.round(1), strict=True))})
        return rows

    return {"two_dimensions": two_dimensions, "one_dimension": one_dimension, "side_chain": side_chain, "chain": chain}


def main(seed: int) -> None:
    global SEED
    SEED = seed
    started = time.perf_counter()
    rows = []
    for kind in kinds().values():
        for row in kind():
            print(json.dumps(row, ensure_ascii=False), flush=True)
            rows.append(row)
    result = {
        "seed": seed,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "openmm": openmm.version.full_version,
        "host": host.machine(),
        "kinds": rows,
    }
    name = f"detector_seed{seed}.json" if seed else "detector.json"
    output = ROOT / "benchmarks" / "results" / name
    output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
