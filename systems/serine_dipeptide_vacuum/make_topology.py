"""Make `topology.pdb`, capped serine, from capped alanine: one HB becomes OG with HG; OpenMM alone.

    python make_topology.py OUTPUT.pdb

Each of the three hydrogens of Cβ is tried, with three positions of HG; the configuration of lowest energy after two
minimisations, φ and ψ held near −80° and 65° and then free, is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

ALANINE = Path(__file__).parents[1] / "alanine_dipeptide_vacuum" / "topology.pdb"
PHI, PSI, CHI1 = (4, 6, 8, 15), (6, 8, 15, 17), (6, 8, 10, 13)
C_O_NM, O_H_NM, C_O_H_RAD = 0.1417, 0.096, np.radians(108.5)


def place(a: np.ndarray, b: np.ndarray, c: np.ndarray, torsion: float) -> np.ndarray:
    """Return the hydrogen on oxygen c with torsion a-b-c-H (radians)."""
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    across = np.cross(normal, along)
    out = np.sin(C_O_H_RAD) * (np.cos(torsion) * across + np.sin(torsion) * normal)
    return c + O_H_NM * (out - np.cos(C_O_H_RAD) * along)


def build(oxygen: str, torsion: float) -> tuple[app.Topology, np.ndarray]:
    """Return serine with the hydrogen named `oxygen` replaced."""
    alanine = app.PDBFile(str(ALANINE))
    x = np.array(alanine.getPositions(asNumpy=True)._value)
    index = {a.name: a.index for a in alanine.topology.atoms() if a.residue.name == "ALA"}
    cb = x[index["CB"]]
    arm = x[index[oxygen]] - cb
    og = cb + arm * C_O_NM / np.linalg.norm(arm)
    others = [x[index[name]] for name in ("HB1", "HB2", "HB3") if name != oxygen]
    topology, positions = app.Topology(), []
    chain = topology.addChain("A")
    for old in alanine.topology.residues():
        residue = topology.addResidue(old.name.replace("ALA", "SER"), chain)
        atoms = [(a.name, a.element.symbol, x[a.index]) for a in old.atoms()]
        if old.name == "ALA":
            hg = place(x[index["CA"]], cb, og, torsion)
            side = [("HB2", "H", others[0]), ("HB3", "H", others[1]), ("OG", "O", og), ("HG", "H", hg)]
            atoms = [atom for atom in atoms if not atom[0].startswith("HB")]
            atoms[5:5] = side
        for name, element, position in atoms:
            topology.addAtom(name, app.Element.getBySymbol(element), residue)
            positions.append(position)
    topology.createStandardBonds()
    return topology, np.array(positions)


def relax(topology: app.Topology, positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Return energy (kJ/mol) and positions after minimising with φ and ψ held, then free."""
    system = app.ForceField("amber99sbildn.xml").createSystem(
        topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds
    )
    hold = openmm.CustomTorsionForce("hold*(1-cos(theta-target))")
    hold.addGlobalParameter("hold", 500.0)
    hold.addPerTorsionParameter("target")
    for atoms, degrees in ((PHI, -80), (PSI, 65)):
        hold.addTorsion(*atoms, [np.radians(degrees)])
    system.addForce(hold)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, 0.1)
    context.setParameter("hold", 0.0)
    openmm.LocalEnergyMinimizer.minimize(context, 0.01)
    state = context.getState(positions=True, energy=True)
    return state.getPotentialEnergy()._value, np.array(state.getPositions(asNumpy=True)._value)


def main(output: Path) -> None:
    found = []
    for oxygen in ("HB1", "HB2", "HB3"):
        for degrees in (60, 180, 300):
            topology, positions = build(oxygen, np.radians(degrees))
            found.append((*relax(topology, positions), topology))
    energy, positions, topology = min(found, key=lambda item: item[0])
    with output.open("w") as file:
        app.PDBFile.writeFile(topology, (positions - positions.mean(axis=0)) * unit.nanometer, file)
    print(f"{energy:.2f} kJ/mol; others: {sorted(round(item[0], 1) for item in found)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
