"""An ordinary OpenMM script, and the lines that add the sampler to it.

    python tutorials/drop_into_your_script.py

About two and a half minutes on two cores. Prints where the basins of alanine dipeptide are and how deep, then goes on
with the user's own simulation, unbiased, from a configuration that plain dynamics would have waited for.
"""

from pathlib import Path

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

import openmm_sgm as sgm

# --- what you have already -------------------------------------------------------------------------------------------
folder = Path(__file__).parents[1] / "systems" / "alanine_dipeptide_vacuum"
pdb = app.PDBFile(str(folder / "topology.pdb"))
force_field = app.ForceField("amber99sbildn.xml")
system = force_field.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtosecond)
simulation = app.Simulation(pdb.topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(pdb.positions)

# --- what you add ----------------------------------------------------------------------------------------------------
cvs = [sgm.Torsion("phi", (4, 6, 8, 14)), sgm.Torsion("psi", (6, 8, 14, 16))]
sampler = sgm.ScoreSampler(simulation, cvs, temperature=300 * unit.kelvin, seed=1, progress=print)
sampler.run(force_evaluations=250_000)
surface = sampler.surface(bins=36)

# --- what you get ----------------------------------------------------------------------------------------------------
phi, psi = (np.degrees(axis) for axis in surface.centers)
for name, side in (("C7eq and C5", phi < 0), ("C7ax", phi > 0)):
    depth = np.where(side[:, None], surface.free_energy, np.nan)
    i, j = np.unravel_index(np.nanargmin(depth), depth.shape)
    print(
        f"{name}: lowest at phi = {phi[i]:.0f}°, psi = {psi[j]:.0f}°, "
        f"{surface.free_energy[i, j]:.1f} ± {surface.std_error[i, j]:.1f} kJ/mol"
    )

# The simulation itself, put where it would not have gone by itself, and then run on without any bias:
sampler.reseed(simulation, {"phi": np.radians(60), "psi": np.radians(-50)})
statistics = sampler.step(simulation, 20_000)
positions = simulation.context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
frame = mdtraj.Trajectory(positions, mdtraj.Topology.from_openmm(pdb.topology))
now = np.degrees(mdtraj.compute_dihedrals(frame, [(4, 6, 8, 14), (6, 8, 14, 16)])[0])
print(
    f"after 20,000 unbiased steps with {statistics.accepted} of {statistics.proposed} generator moves accepted: "
    f"phi = {now[0]:.0f}°, psi = {now[1]:.0f}°"
)
