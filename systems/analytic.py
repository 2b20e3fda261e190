"""Write the folders of the fast/slow systems with known answers: topology.pdb, system.xml, system.toml.

    python systems/analytic.py

A slow variable x (or an angle θ), fast variables whose law given it is known by quadrature. Energies are in kJ/mol,
lengths in nm, 300 K. The closed forms, written independently of OpenMM's expressions, are in tests/fast_slow.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import openmm
from openmm import app, unit

FOLDER = Path(__file__).parent
MASS = 10.0
TEMPERATURE_K = 300.0
LATERAL = 25.0
"""Force constant (kJ/mol/nm²) that holds a particle's coordinates that play no part."""

BENT = "12*((x1/0.5)^2-1)^2 + 30*(y2-1.2*x1^2)^2"
BIMODAL = "4*x^2 + 16*((y/0.4)^2-1)^2 + 15*x*y"
MULLER_BROWN = " + ".join(
    f"({0.12 * height})*exp({a}*(x-({x}))^2+({b})*(x-({x}))*(y-({y}))+({c})*(y-({y}))^2)"
    for height, a, b, c, x, y in (
        (-200, -1, 0, -10, 1, 0),
        (-100, -1, 0, -10, 0, 0.5),
        (-170, -6.5, 11, -6.5, -0.5, 1.5),
        (15, 0.7, 0.6, 0.7, -1, 1),
    )
)
"""Müller & Brown 1979, in units of 0.12 kJ/mol, and nm."""
HALF_MOON = (
    "12*((slow/0.5)^2-1)^2 + 30*(r-1)^2 + {kt}*log(r); slow={slow}; r=sqrt(x^2+y^2)",
    "0.6366197723675814*atan2({y}, {x})",
)
"""The potential, and the slow variable: a double well along half a circle, slow = 2 angle/π. The potential has kT log
of the volume element, so that slow and r − 1 are independent."""
S_SHAPE = ("12*((slow/0.5)^2-1)^2 + 30*(y-0.6*sin(3*slow))^2; slow={slow}", "{x}-0.5*sin(2*{y})")
"""The same along an S that overhangs; two shears, which keep areas."""
ANGLE = "12*(((theta-2.0)/0.4)^2-1)^2"


def bent(epsilon: float) -> tuple[openmm.System, list[tuple[float, float, float]]]:
    """Return two particles: x of the first is slow, y of the second follows 1.2 x² and is 1/ε times as fast.

    The mass of the second is ε times the first's, so that its mobility under Brownian dynamics is 1/ε times as large
    while the potential, and with it the law of y given x, does not depend on ε.
    """
    system = openmm.System()
    coupling = openmm.CustomCompoundBondForce(2, BENT)
    coupling.addBond([0, 1], [])
    system.addForce(coupling)
    for mass, idle in ((MASS, "yz"), (epsilon * MASS, "xz")):
        hold = openmm.CustomExternalForce(f"{LATERAL / 2}*({idle[0]}^2+{idle[1]}^2)")
        hold.addParticle(system.addParticle(mass), [])
        system.addForce(hold)
    return system, [(-0.5, 0.0, 0.0), (0.0, 0.3, 0.0)]


def plane(expression: str, x: float, y: float) -> tuple[openmm.System, list[tuple[float, float, float]]]:
    """Return one particle in a potential over x and y, at a starting point."""
    system = openmm.System()
    force = openmm.CustomExternalForce(f"{expression} + {LATERAL / 2}*z^2")
    force.addParticle(system.addParticle(MASS), [])
    system.addForce(force)
    return system, [(x, y, 0.0)]


def bent_view(energy: str, slow: str, x: float, y: float) -> tuple[openmm.System, list[tuple[float, float, float]]]:
    """Return one particle in a double well that is bent by a map of the plane."""
    kt = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin) * TEMPERATURE_K
    value, _, definitions = energy.format(kt=kt, slow=slow.format(x="x", y="y")).partition(";")
    system = openmm.System()
    force = openmm.CustomExternalForce(f"{value} + {LATERAL / 2}*z^2;{definitions}")
    force.addParticle(system.addParticle(MASS), [])
    system.addForce(force)
    return system, [(x, y, 0.0)]


def three_atoms() -> tuple[openmm.System, list[tuple[float, float, float]]]:
    """Return two bonds and an angle with a double well."""
    system = openmm.System()
    for _ in range(3):
        system.addParticle(12.0)
    bonds, angle = openmm.HarmonicBondForce(), openmm.CustomAngleForce(ANGLE)
    bonds.addBond(0, 1, 0.15, 4000.0)
    bonds.addBond(1, 2, 0.15, 4000.0)
    angle.addAngle(0, 1, 2, [])
    system.addForce(bonds)
    system.addForce(angle)
    return system, [(0.15, 0.0, 0.0), (0.0, 0.0, 0.0), (-0.0044, 0.1499, 0.0)]


def write(
    name: str, system: openmm.System, positions: list[tuple[float, float, float]], table: str, bonded: bool
) -> None:
    """Write one folder."""
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    topology = app.Topology()
    residue = topology.addResidue("PAR", topology.addChain())
    atoms = [topology.addAtom(f"A{k}", app.element.argon, residue) for k in range(len(positions))]
    if bonded:
        for pair in itertools.pairwise(atoms):
            topology.addBond(*pair)
    with (folder / "topology.pdb").open("w") as file:
        file.write("REMARK   1 written by systems/analytic.py\n")
        app.PDBFile.writeModel(topology, [openmm.Vec3(*p) for p in positions] * unit.nanometer, file)
        app.PDBFile.writeFooter(topology, file)
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    (folder / "system.toml").write_text(
        f'name = "{name}"\ntopology = "topology.pdb"\nsystem = "system.xml"\ntemperature_k = {TEMPERATURE_K}\n{table}'
    )


def position(low: float, high: float) -> str:
    """Return the table of a system whose CV is the first particle's x."""
    return in_plane('name = "x"\nkind = "position"\natoms = [0]\naxis = "x"', low, high)


def in_plane(cv: str, low: float, high: float) -> str:
    """Return the table of a system of tied particles."""
    dynamics = "time_step_fs = 10.0\nfriction_per_ps = 10.0"
    return f"{dynamics}\n\n[[cv]]\n{cv}\nmin = {low}\nmax = {high}\nbins = 40\n"


if __name__ == "__main__":
    write("bent_double_well", *bent(0.01), position(-1.0, 1.0), False)
    write("bimodal", *plane(BIMODAL, 0.0, -0.4), position(-1.2, 1.2), False)
    write("muller_brown", *plane(MULLER_BROWN, -0.558, 1.442), position(-1.6, 1.3), False)
    for name, (energy, slow), start in (
        ("half_moon", HALF_MOON, (0.7071, -0.7071)),
        ("s_shape", S_SHAPE, (-0.9655, -0.5985)),
    ):
        cv = f'name = "slow"\nkind = "expression"\natoms = [0]\nexpression = "{slow.format(x="x1", y="y1")}"'
        write(name, *bent_view(energy, slow, *start), in_plane(cv, -1.0, 1.0), False)
    angle = '[[cv]]\nname = "theta"\nkind = "angle"\natoms = [0, 1, 2]\nmin = 1.1\nmax = 2.9\nbins = 40\n'
    write("three_atoms", *three_atoms(), f"time_step_fs = 2.0\nfriction_per_ps = 1.0\n\n{angle}", True)
