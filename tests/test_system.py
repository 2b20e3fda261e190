"""Loading and taking over systems, the biased copy, and one refusal per thing that is not supported."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from conftest import REPOSITORY, energy, forces, reference_context
from openmm import app, unit

from openmm_sgm.cvs import RMSD, CustomCV, Distance, Torsion
from openmm_sgm.supported import check_supported
from openmm_sgm.system import MolecularSystem
from openmm_sgm.system_file import load_system
from openmm_sgm.units import InputError
from openmm_sgm.windows import WindowGrid

PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
VACUUM = REPOSITORY / "systems" / "alanine_dipeptide_vacuum"
OBC = REPOSITORY / "systems" / "alanine_dipeptide_obc"
PSI_ALONE = REPOSITORY / "systems" / "alanine_dipeptide_psi"
SERINE = REPOSITORY / "systems" / "serine_dipeptide_vacuum"
PROLINE = REPOSITORY / "tests" / "data" / "capped_proline"


def simulation_of(
    molecule: MolecularSystem, integrator: openmm.Integrator | None = None, *extra: openmm.Force
) -> app.Simulation:
    """Return a Simulation as a user would have it, with `extra` forces."""
    system = copy.deepcopy(molecule.system)
    for force in extra:
        system.addForce(force)
    if integrator is None:
        integrator = openmm.LangevinMiddleIntegrator(310 * unit.kelvin, 2 / unit.picosecond, 1 * unit.femtosecond)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(molecule.topology, system, integrator, platform)
    simulation.context.setPositions(molecule.positions)
    return simulation


# The systems that come with the package


@pytest.mark.parametrize(
    ("folder", "atoms", "hydrogens"),
    [(VACUUM, 22, 12), (OBC, 22, 12), (PSI_ALONE, 22, 12), (SERINE, 23, 12), (PROLINE, 26, 14)],
    ids=lambda v: str(v)[-20:],
)
def test_load_system(folder, atoms, hydrogens):
    molecule = load_system(folder)
    assert molecule.name == folder.name
    assert molecule.n_atoms == atoms == len(molecule.positions) == len(molecule.masses)
    assert molecule.positions.dtype == np.float64
    assert len(molecule.cvs) == (1 if folder == PSI_ALONE else 2)
    assert (molecule.temperature_k, molecule.time_step_fs, molecule.friction_per_ps) == (300.0, 2.0, 1.0)
    assert molecule.bonds.shape == (atoms - 1 + (folder == PROLINE), 2)
    assert len(molecule.constraints) == hydrogens
    assert all(0.09 < distance < 0.12 for _, _, distance in molecule.constraints)
    context = reference_context(molecule.system)
    assert energy(context, molecule.positions) < 0
    assert np.abs(forces(context, molecule.positions)).max() < 2000
    assert molecule.physical_xml == openmm.XmlSerializer.serialize(molecule.system)


def test_defaults_and_bins(alanine, proline):
    assert alanine.bins == (36, 36)
    assert proline.bins == (36, 30)
    cvs = [Torsion("psi", (6, 16, 18, 20)), Distance("r", (5, 20), 0.2, 0.6)]
    assert MolecularSystem.from_simulation(simulation_of(proline), cvs).bins == (36, 40)


@pytest.mark.parametrize("folder", [VACUUM, OBC], ids=lambda f: f.name)
def test_alanine_is_trans_l_alanine_in_c7eq_with_named_atoms(folder):
    molecule = load_system(folder)
    atoms = list(molecule.topology.atoms())
    names = [(atoms[i].residue.name, atoms[i].name) for i in (4, 6, 8, 10, 14, 16)]
    assert names == [("ACE", "C"), ("ALA", "N"), ("ALA", "CA"), ("ALA", "CB"), ("ALA", "C"), ("NME", "N")]
    np.testing.assert_allclose(np.degrees(molecule.evaluate_cvs(molecule.positions[None])[0]), [-80, 60], atol=10)
    omegas = mdtraj.compute_dihedrals(molecule.trajectory(molecule.positions), [[1, 4, 6, 8], [8, 14, 16, 18]])
    assert (np.abs(omegas) > np.radians(170)).all()
    # CORN: seen with the hydrogen towards the eye, CO, R and N follow each other clockwise in an L amino acid.
    hydrogen, carbonyl, side_chain, nitrogen = (molecule.positions[i] - molecule.positions[8] for i in (9, 14, 10, 6))
    turn = np.cross(carbonyl, side_chain) + np.cross(side_chain, nitrogen) + np.cross(nitrogen, carbonyl)
    assert turn @ hydrogen < 0


def test_serine_is_trans_l_serine_in_c7eq_with_named_atoms():
    molecule = load_system(SERINE)
    names = [atom.name for atom in molecule.topology.atoms()]
    assert [names[i] for i in (4, 6, 8, 10, 13, 14, 15, 17)] == ["C", "N", "CA", "CB", "OG", "HG", "C", "N"]
    assert molecule.cvs[0].atoms == (4, 6, 8, 15)
    assert molecule.cvs[1].atoms == (6, 8, 15, 17)
    torsions = [[4, 6, 8, 15], [6, 8, 15, 17], [6, 8, 10, 13], [1, 4, 6, 8], [8, 15, 17, 19]]
    values = np.degrees(mdtraj.compute_dihedrals(molecule.trajectory(molecule.positions), torsions)[0])
    np.testing.assert_allclose(values[:3], [-80, 60, 60], atol=10)
    assert (np.abs(values[3:]) > 170).all()
    turn = [molecule.positions[i] - molecule.positions[8] for i in (6, 15, 10)]
    assert np.linalg.det(turn) > 0, "as in capped L-alanine"


def test_obc_has_its_solvent(alanine):
    molecule = load_system(OBC)
    (solvent,) = (f for f in molecule.system.getForces() if isinstance(f, openmm.GBSAOBCForce))
    (coulomb,) = (f for f in molecule.system.getForces() if isinstance(f, openmm.NonbondedForce))
    for i in range(22):
        assert solvent.getParticleParameters(i)[0] == coulomb.getParticleParameters(i)[0]
    difference = energy(reference_context(molecule.system), alanine.positions) - energy(
        reference_context(alanine.system), alanine.positions
    )
    assert -120 < difference < -10, "the solvation free energy of a small amide, kJ/mol"


@pytest.mark.parametrize("folder", [VACUUM, OBC, PSI_ALONE, SERINE], ids=lambda f: f.name)
def test_reference_comes_with_the_system(folder):
    name = "alanine_dipeptide_vacuum.csv" if folder == VACUUM else "surface.csv"
    table = np.genfromtxt(folder / "reference" / name, delimiter=",", names=True)
    cvs = tuple(cv.name for cv in load_system(folder).cvs)
    assert table.dtype.names == (*cvs, "free_energy_kj_mol", "std_error_kj_mol")
    assert table.shape == (36 ** len(cvs),)
    assert np.nanmin(table["free_energy_kj_mol"]) == 0


@pytest.mark.parametrize("folder", [PSI_ALONE, SERINE], ids=lambda f: f.name)
def test_hidden_reference_is_of_the_default_windows(folder):
    table = np.genfromtxt(folder / "reference" / "hidden.csv", delimiter=",", names=True)
    molecule = load_system(folder)
    grid = WindowGrid.over(molecule.cvs, molecule.temperature_k)
    np.testing.assert_allclose(table["force_constant"], grid.force_constants[0], rtol=1e-5)
    points = np.stack([table[cv.name] for cv in molecule.cvs], axis=1)
    nearest = [grid.nearest(point) for point in points]
    np.testing.assert_allclose(grid.centers[nearest], points, atol=1e-5)
    assert len(set(nearest)) == len(nearest)
    if folder == SERINE:
        shares = sum(table[f"population_{basin}"] for basin in ("g_plus", "trans", "g_minus"))
        np.testing.assert_allclose(shares, 1, atol=2e-5)


# Positions in, CVs out


def test_evaluate_cvs_survives_drift(alanine, alanine_conformations):
    values = alanine.evaluate_cvs(alanine_conformations)
    assert values.shape == (len(alanine_conformations), 2)
    far = alanine.evaluate_cvs(alanine_conformations + np.array([0.0, 3000.0, 0.0]))
    # Positions near 3 µm in single precision would be wrong by 2e-4 nm, torsions by 2e-3 rad.
    np.testing.assert_allclose(far, values, atol=1e-5)


def test_evaluate_cvs_in_chunks(alanine, alanine_conformations, monkeypatch):
    values = alanine.evaluate_cvs(alanine_conformations)
    monkeypatch.setattr("openmm_sgm.system.CHUNK", 7)
    np.testing.assert_array_equal(alanine.evaluate_cvs(alanine_conformations), values)
    assert alanine.evaluate_cvs(np.zeros((0, 22, 3))).shape == (0, 2)
    with pytest.raises(ValueError, match=r"must have shape \(n, 22, 3\)"):
        alanine.evaluate_cvs(alanine_conformations[0])


def test_a_system_can_be_sent_to_a_process(alanine):
    sent = pickle.loads(pickle.dumps(alanine))
    assert sent.physical_xml == alanine.physical_xml
    np.testing.assert_array_equal(sent.bonds, alanine.bonds)
    np.testing.assert_array_equal(
        sent.evaluate_cvs(alanine.positions[None]), alanine.evaluate_cvs(sent.positions[None])
    )


# The biased copy


def test_biased_system_adds_umbrellas_in_one_free_group(alanine, alanine_conformations):
    before = alanine.physical_xml
    system, prefixes, physical = alanine.biased_system()
    assert len(prefixes) == 2
    assert openmm.XmlSerializer.serialize(alanine.system) == before
    used = {force.getForceGroup() for force in alanine.system.getForces()}
    added = {force.getForceGroup() for force in system.getForces()} - used
    assert len(added) == 1
    (group,) = added
    assert physical == 2**32 - 1 - 2**group
    context, plain = reference_context(system), reference_context(alanine.system)
    for prefix, center in zip(prefixes, (1.0, -2.0), strict=True):
        context.setParameter(f"{prefix}_center", center)
        context.setParameter(f"{prefix}_force_constant", 100.0)
    for x in alanine_conformations[:4]:
        values = alanine.evaluate_cvs(x[None])[0]
        expected = 50 * sum(
            cv.difference(value, c) ** 2 for cv, value, c in zip(alanine.cvs, values, (1.0, -2.0), strict=True)
        )
        assert energy(context, x, {group}) == pytest.approx(expected, rel=1e-4)
        assert energy(context, x, physical) == energy(plain, x)
        np.testing.assert_array_equal(forces(context, x, physical), forces(plain, x))


def test_biased_system_twice_over_keeps_its_parameters_apart(alanine):
    system, first, _ = alanine.biased_system()
    again = MolecularSystem("again", alanine.topology, system, alanine.positions, alanine.cvs, 300.0)
    _, second, _ = again.biased_system()
    assert not set(first) & set(second)


def test_all_force_groups_in_use(alanine):
    system = copy.deepcopy(alanine.system)
    for group in range(32):
        force = openmm.CustomBondForce("0")
        force.setForceGroup(group)
        system.addForce(force)
    full = MolecularSystem("full", alanine.topology, system, alanine.positions, alanine.cvs, 300.0)
    with pytest.raises(InputError, match="all 32 force groups are in use"):
        full.biased_system()


# A user's simulation


def test_from_simulation_reads_and_changes_nothing(alanine):
    simulation = simulation_of(alanine)
    simulation.step(20)
    state = simulation.context.getState(positions=True, velocities=True, parameters=True)
    before = openmm.XmlSerializer.serialize(simulation.system), openmm.XmlSerializer.serialize(state)
    molecule = MolecularSystem.from_simulation(simulation, list(alanine.cvs), temperature=310, bins=[18, 24])
    molecule.biased_system()
    state_after = simulation.context.getState(positions=True, velocities=True, parameters=True)
    after = openmm.XmlSerializer.serialize(simulation.system), openmm.XmlSerializer.serialize(state_after)
    assert after == before
    np.testing.assert_array_equal(molecule.positions, state.getPositions(asNumpy=True)._value)
    assert molecule.temperature_k == pytest.approx(310)
    assert molecule.time_step_fs == pytest.approx(1)
    assert molecule.friction_per_ps == pytest.approx(2)
    assert (molecule.bins, molecule.name) == ((18, 24), "user")


def test_from_simulation_takes_the_parameters_of_the_context(alanine):
    inner = openmm.CustomBondForce("strength*r")
    inner.addGlobalParameter("strength", 0.0)
    inner.addBond(0, 10, [])
    outer = openmm.CustomCVForce("scale*x")
    outer.addGlobalParameter("scale", 1.0)
    outer.addCollectiveVariable("x", inner)
    simulation = simulation_of(alanine, None, outer)
    simulation.context.setParameter("strength", 70.0)
    simulation.context.setParameter("scale", 3.0)
    molecule = MolecularSystem.from_simulation(simulation, alanine.cvs)
    expected = simulation.context.getState(energy=True).getPotentialEnergy()._value
    assert energy(reference_context(molecule.system), alanine.positions) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("integrator", "friction"),
    [
        (openmm.LangevinMiddleIntegrator(300, 5, 0.002), 5),
        (openmm.LangevinIntegrator(300, 5, 0.002), 5),
        (openmm.BrownianIntegrator(300, 5, 0.002), 5),
        (openmm.NoseHooverIntegrator(300, 5, 0.002), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_integrators_with_a_thermostat(integrator, friction, alanine):
    molecule = MolecularSystem.from_simulation(simulation_of(alanine, copy.deepcopy(integrator)), alanine.cvs)
    assert (molecule.temperature_k, molecule.time_step_fs) == (pytest.approx(300), pytest.approx(2))
    assert molecule.friction_per_ps == friction


def test_temperature_of_an_integrator_without_thermostat(alanine):
    simulation = simulation_of(alanine, openmm.VerletIntegrator(0.001))
    molecule = MolecularSystem.from_simulation(simulation, alanine.cvs, temperature=320 * unit.kelvin)
    assert (molecule.temperature_k, molecule.friction_per_ps) == (320, 1)
    with pytest.raises(InputError, match="VerletIntegrator has no thermostat: give a temperature"):
        MolecularSystem.from_simulation(simulation, alanine.cvs)


def test_andersen_thermostat_sets_the_temperature_and_is_left_out(alanine):
    simulation = simulation_of(alanine, openmm.VerletIntegrator(0.001), openmm.AndersenThermostat(290, 1))
    simulation.context.setParameter(openmm.AndersenThermostat.Temperature(), 350)
    molecule = MolecularSystem.from_simulation(simulation, alanine.cvs)
    assert molecule.temperature_k == 350
    for system in (molecule.system, molecule.biased_system()[0]):
        assert not any(isinstance(force, openmm.AndersenThermostat) for force in system.getForces())
    assert any(isinstance(force, openmm.AndersenThermostat) for force in simulation.system.getForces())
    with pytest.raises(InputError, match="contradict"):
        MolecularSystem.from_simulation(simulation, alanine.cvs, temperature=290)


def test_contradicting_temperature(alanine):
    simulation = simulation_of(alanine)
    with pytest.raises(InputError, match=r"contradict each other: 310 K .* and 300 K"):
        MolecularSystem.from_simulation(simulation, alanine.cvs, temperature=300 * unit.kelvin)
    assert MolecularSystem.from_simulation(simulation, alanine.cvs, temperature=310.005).temperature_k == 310


def test_time_step_that_is_not_set(alanine):
    simulation = simulation_of(alanine, openmm.LangevinMiddleIntegrator(300, 1, 0.001))
    simulation.integrator.setStepSize(0.0)
    with pytest.raises(InputError, match="time step of LangevinMiddleIntegrator must be set"):
        MolecularSystem.from_simulation(simulation, alanine.cvs)


# What is not supported


def _with(alanine: MolecularSystem, force: openmm.Force) -> tuple[app.Topology, openmm.System]:
    system = copy.deepcopy(alanine.system)
    system.addForce(force)
    return alanine.topology, system


def _restraint() -> openmm.Force:
    force = openmm.CustomExternalForce("100*(x^2+y^2+z^2)")
    force.addParticle(0, [])
    return force


def _periodic(alanine: MolecularSystem) -> tuple[app.Topology, openmm.System]:
    topology = copy.deepcopy(alanine.topology)
    topology.setPeriodicBoxVectors(np.eye(3) * 3)
    field = app.ForceField("amber99sbildn.xml")
    return topology, field.createSystem(topology, nonbondedMethod=app.PME)


def _no_bonds(alanine: MolecularSystem) -> tuple[app.Topology, openmm.System]:
    topology = copy.deepcopy(alanine.topology)
    topology._bonds.clear()
    return topology, alanine.system


def _two_pieces(alanine: MolecularSystem) -> tuple[app.Topology, openmm.System]:
    topology = copy.deepcopy(alanine.topology)
    topology._bonds = [bond for bond in topology.bonds() if {bond[0].index, bond[1].index} != {4, 6}]
    return topology, alanine.system


def _frozen(alanine: MolecularSystem) -> tuple[app.Topology, openmm.System]:
    system = app.ForceField("amber99sbildn.xml").createSystem(alanine.topology)
    system.setParticleMass(3, 0)
    return alanine.topology, system


def _rigid_angles(alanine: MolecularSystem) -> tuple[app.Topology, openmm.System]:
    field = app.ForceField("amber99sbildn.xml")
    return alanine.topology, field.createSystem(alanine.topology, constraints=app.HAngles)


def _one_more_particle(alanine: MolecularSystem) -> tuple[app.Topology, openmm.System]:
    system = copy.deepcopy(alanine.system)
    system.addParticle(1.0)
    return alanine.topology, system


UNSUPPORTED = {
    "barostat": (lambda a: _with(a, openmm.MonteCarloBarostat(1, 300)), "NVT.*remove the barostat"),
    "periodic": (_periodic, "periodic boundary conditions are not supported yet"),
    "position restraint": (
        lambda a: _with(a, _restraint()),
        r"here by CustomExternalForce\).*where constraints cannot be kept",
    ),
    "no bonds": (_no_bonds, "the topology has no bonds"),
    "two pieces": (_two_pieces, "form 2 pieces, but one bonded molecule .* is supported"),
    "frozen atom": (_frozen, "particle 3 has no mass and is no virtual site"),
    "rigid angles": (_rigid_angles, "constrained but not bonded .*only bonds may be constrained"),
    "sizes": (_one_more_particle, "the topology has 22 atoms and the system 23 particles"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_systems_are_refused(case, alanine):
    make, message = UNSUPPORTED[case]
    topology, system = make(alanine)
    with pytest.raises(InputError, match=message) as caught:
        check_supported(topology, system, alanine.cvs, alanine.positions)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        MolecularSystem("bad", topology, system, alanine.positions, alanine.cvs, 300.0)


def test_cvs_that_do_not_fit_are_refused(alanine):
    simulation = simulation_of(alanine)
    with pytest.raises(InputError, match="CV 'phi' asks for atom 22, but the system has 22 atoms, counted from 0"):
        MolecularSystem.from_simulation(simulation, [Torsion("phi", (4, 6, 8, 22))])
    with pytest.raises(InputError, match="different names"):
        MolecularSystem.from_simulation(simulation, [Torsion("phi", PHI), Torsion("phi", PSI)])
    with pytest.raises(InputError, match="the reference has 23 atoms and the system 22"):
        MolecularSystem.from_simulation(simulation, [RMSD("rmsd", (1, 4, 6), np.zeros((23, 3)), 0, 1)])
    force = openmm.CustomBondForce("10*r")
    force.addBond(1, 18, [])
    function = Distance("r", (1, 18), 0, 1).evaluate
    with pytest.raises(InputError, match=r"by mdtraj and .* by its OpenMM force; both must give the same"):
        MolecularSystem.from_simulation(simulation, [CustomCV("r", force, function, minimum=0, maximum=1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.zeros((21, 3))}, "positions must be finite and of shape"),
        ({"positions": np.full((22, 3), np.nan)}, "positions must be finite"),
        ({"temperature_k": 0.0}, "temperature_k must be positive"),
        ({"time_step_fs": -1.0}, "time_step_fs must be positive"),
        ({"friction_per_ps": np.inf}, "friction_per_ps must be positive and finite"),
        ({"bins": (36,)}, "for each of the 2 CVs"),
        ({"bins": (36, 1)}, "bins must be 2 or more"),
        ({"bins": (36, 1.5)}, "bins must be whole numbers"),
    ],
)
def test_bad_fields_are_refused(change, message, alanine):
    fields = {name: getattr(alanine, name) for name in ("name", "topology", "system", "positions", "cvs")}
    with pytest.raises(InputError, match=message):
        MolecularSystem(**{**fields, "temperature_k": 300.0, **change})


def test_virtual_sites_and_motion_remover_are_supported(alanine):
    topology = copy.deepcopy(alanine.topology)
    *_, residue = topology.residues()
    topology.addAtom("M", None, residue)
    system = copy.deepcopy(alanine.system)
    system.addParticle(0.0)
    system.setVirtualSite(22, openmm.TwoParticleAverageSite(4, 5, 0.5, 0.5))
    (coulomb,) = (f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    coulomb.addParticle(0.0, 0.1, 0.0)
    assert any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
    x = np.vstack([alanine.positions, alanine.positions[[4, 5]].mean(axis=0)])
    molecule = MolecularSystem("site", topology, system, x, alanine.cvs, 300.0)
    np.testing.assert_allclose(molecule.evaluate_cvs(x[None]), alanine.evaluate_cvs(x[None, :22]), atol=1e-5)
    assert molecule.masses[22] == 0


# system.toml


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the alanine folder that a test may spoil."""
    return Path(shutil.copytree(VACUUM, tmp_path / "mine"))


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "system.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BAD_FILES = {
    "misspelt key": ("temperature_k", "temperature", r"there is no key 'temperature' \(is 'temperature_k' meant\?\)"),
    "negative temperature": ("300.0", "-300.0", "temperature_k: Input should be greater than 0"),
    "not toml": ('name = "alanine', 'name "alanine', "is not valid TOML"),
    "method": ("NoCutoff", "PME", "nonbonded_method: Input should be 'NoCutoff' or 'CutoffNonPeriodic'"),
    "constraints": ("HBonds", "Hbonds", "constraints: Input should be 'None', 'HBonds', 'AllBonds' or 'HAngles'"),
    "rigid angles": ("HBonds", "HAngles", "only bonds may be constrained"),
    "kind": ('"torsion"', '"dihedral"', "CV 'phi': kind must be one of torsion, distance, .* got 'dihedral'"),
    "cv key": ("bins = 36", "bin = 36", "takes no 'bin', only atoms, windows, force_constant, bins, min, max"),
    "cv bins": ("bins = 36", "bins = 1", "cv.0.bins: Input should be greater than or equal to 2"),
    "cv range": ("bins = 36", "min = 0.0", "CV 'phi' is periodic"),
    "cv minimum": ("bins = 36", "minimum = 0.0", "takes no 'minimum'"),
    "cv no range": ('"torsion"\natoms = [4, 6, 8, 14]', '"distance"\natoms = [4, 6]', "needs a minimum and a maximum"),
    "cv no atoms": ("atoms = [4, 6, 8, 14]", "", "a torsion needs atoms"),
    "cv atoms": ("atoms = [4, 6, 8, 14]", "atoms = [4, 6, 8, 99]", "asks for atom 99"),
    "cv same name": ('"psi"', '"phi"', "different names"),
    "no topology": ("topology.pdb", "missing.pdb", "holds no file 'missing.pdb'"),
    "topology outside": ("topology.pdb", "../topology.pdb", "lies outside"),
    "topology absolute": ("topology.pdb", "/etc/hosts", "lies outside"),
    "topology kind": ("topology.pdb", "README.md", "must be a .pdb or .cif file"),
    "field outside": ('["amber99sbildn.xml"]', '["../field.xml"]', "lies outside"),
    "field unknown": ("amber99sbildn.xml", "amber98.xml", "there is no force field 'amber98.xml' in .* or of OpenMM's"),
    "no field": ('force_field = ["amber99sbildn.xml"]', "", "needs either force_field"),
    "field and system": ("[[cv]]", 'system = "system.xml"\n[[cv]]', "needs either force_field"),
    "system outside": ('force_field = ["amber99sbildn.xml"]\nnonbonded_method = "NoCutoff"\nconstraints = "HBonds"',
                       'system = "../system.xml"', "lies outside"),
    "system and method": ('force_field = ["amber99sbildn.xml"]', 'system = "system.xml"',
                          "nonbonded_method, constraints belong to force_field"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(case, folder):
    old, new, message = BAD_FILES[case]
    edit(folder, old, new)
    with pytest.raises(InputError, match=message) as caught:
        load_system(folder)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_link_out_of_it_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"holds no system\.toml"):
        load_system(tmp_path / "nowhere")
    (folder / "topology.pdb").rename(tmp_path / "elsewhere.pdb")
    (folder / "topology.pdb").symlink_to(tmp_path / "elsewhere.pdb")
    with pytest.raises(InputError, match="lies outside"):
        load_system(folder)


def test_missing_hydrogens_forward_openmm(folder):
    pdb = folder / "topology.pdb"
    lines = [line for line in pdb.read_text().splitlines() if not line.startswith("ATOM") or " HA " not in line]
    pdb.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"does not fit 'topology\.pdb': No template found for residue") as caught:
        load_system(folder)
    assert "\n" not in str(caught.value)


def test_broken_structure_is_refused(folder):
    (folder / "topology.pdb").write_text("ATOM      1  N   ALA A   1      one two three\n")
    with pytest.raises(InputError, match=r"'topology\.pdb' cannot be read"):
        load_system(folder)


FIELD = 'force_field = ["amber99sbildn.xml"]\nnonbonded_method = "NoCutoff"\nconstraints = "HBonds"'


def test_system_xml_and_every_kind_of_cv(folder, alanine):
    (folder / "system.xml").write_text(alanine.physical_xml)
    edit(folder, FIELD, 'system = "system.xml"')
    path = folder / "system.toml"
    header = path.read_text().split("[[cv]]")[0]
    tables = [
        'name = "r"\nkind = "distance"\natoms = [1, 18]\nmin = 0.3\nmax = 0.9\nwindows = 7\nforce_constant = 900.0',
        'name = "theta"\nkind = "angle"\natoms = [4, 8, 16]\nmin = 1.0\nmax = 3.0\nbins = 12',
        'name = "rg"\nkind = "radius_of_gyration"\natoms = [1, 4, 8, 18]\nmin = 0.1\nmax = 0.4',
        'name = "rmsd"\nkind = "rmsd"\natoms = [1, 4, 8, 18]\nmin = 0\nmax = 0.4',
        'name = "rmsd_file"\nkind = "rmsd"\natoms = [1, 4, 8, 16]\nreference = "topology.pdb"\nmin = 0\nmax = 0.4',
        'name = "contacts"\nkind = "contact_number"\ngroups = [[1, 5], [15, 18]]\ncutoff = 0.4\nmin = 0\nmax = 4',
    ]
    values = []
    for start in (0, 3):
        path.write_text(header + "".join(f"[[cv]]\n{table}\n\n" for table in tables[start : start + 3]))
        molecule = load_system(folder)
        assert molecule.physical_xml == alanine.physical_xml
        values.extend(molecule.evaluate_cvs(alanine.positions[None])[0])
        if start == 0:
            assert molecule.bins == (40, 12, 40)
            assert (molecule.cvs[0].windows, molecule.cvs[0].force_constant) == (7, 900)
    np.testing.assert_allclose(values[3:5], 0, atol=3e-4)
    assert 0 < values[5] < 4


def test_a_reference_of_some_atoms_and_shapes_of_particles_in_a_file(folder, alanine):
    """Neither was taken: the reference had to hold all atoms, and distance(p1, p2) was no function."""
    atoms = [4, 6, 8, 14, 16]
    alanine.trajectory(alanine.positions + 0.7).atom_slice(atoms).save_pdb(folder / "part.pdb")
    path = folder / "system.toml"
    tables = (
        f'name = "rmsd"\nkind = "rmsd"\natoms = {atoms}\nreference = "part.pdb"\nmin = 0\nmax = 0.4',
        'name = "d"\nkind = "expression"\natoms = [4, 14]\nexpression = "distance(p1, p2)"\nmin = 0\nmax = 0.9',
    )
    path.write_text(path.read_text().split("[[cv]]")[0] + "".join(f"[[cv]]\n{table}\n\n" for table in tables))
    molecule = load_system(folder)
    rmsd, distance = molecule.evaluate_cvs(alanine.positions[None])[0]
    assert rmsd == pytest.approx(0, abs=3e-4)
    assert distance == pytest.approx(np.linalg.norm(alanine.positions[4] - alanine.positions[14]), abs=1e-5)
    assert molecule.cv_gradients(alanine.positions[None], [0, 1]).shape == (1, 2, 22, 3)


def test_files_of_the_folder_come_first_and_no_constraints(folder):
    source = Path(app.__file__).parent / "data" / "amber99sbildn.xml"
    shutil.copy(source, folder / "mine.xml")
    edit(folder, "amber99sbildn.xml", "mine.xml")
    edit(folder, '"HBonds"', '"None"')
    edit(folder, 'nonbonded_method = "NoCutoff"', 'nonbonded_method = "CutoffNonPeriodic"\nnonbonded_cutoff_nm = 0.7')
    molecule = load_system(folder)
    assert molecule.constraints == ()
    (coulomb,) = (f for f in molecule.system.getForces() if isinstance(f, openmm.NonbondedForce))
    assert coulomb.getCutoffDistance() == 0.7 * unit.nanometer


def test_broken_system_xml_is_refused(folder):
    (folder / "system.xml").write_text("<System")
    edit(folder, FIELD, 'system = "system.xml"')
    with pytest.raises(InputError, match=r"'system\.xml' cannot be read"):
        load_system(folder)
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001)))
    with pytest.raises(InputError, match=r"'system\.xml' holds no System but VerletIntegrator"):
        load_system(folder)
