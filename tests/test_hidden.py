"""Windows in a wrong state are found and named, and windows in the right one are left alone."""

from __future__ import annotations

import mdtraj
import numpy as np
import pytest
from openmm import unit
from synthetic import CENTERS, GRID, KT, chain
from test_symmetry import changed, settings_of

from openmm_sgm.cvs import Torsion
from openmm_sgm.executors import SerialExecutor
from openmm_sgm.frames import MD, Frames
from openmm_sgm.hidden import (
    Disagreement,
    HiddenStates,
    Observable,
    Umbrella,
    find_hidden_states,
    hidden_states_in_frames,
    hidden_states_in_trajectories,
    observables_of,
    untrusted,
)
from openmm_sgm.simulate import Segment, run_segments
from openmm_sgm.system import MolecularSystem
from openmm_sgm.units import InputError
from openmm_sgm.windows import WindowGrid

WINDOWS = np.arange(len(CENTERS))
OMEGA = "torsion ALA2-C NME3-N"


def correlated(n: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """Return an autoregressive series of unit variance."""
    noise = rng.standard_normal(n)
    for k in range(1, n):
        noise[k] = memory * noise[k - 1] + np.sqrt(1 - memory**2) * noise[k]
    return noise


def torsion(samples: Frames, rng: np.random.Generator, memory: float = 0.8) -> np.ndarray:
    """Return an angle that follows the CV, as a neighbouring torsion does, with a slower motion of its own."""
    own = [0.2 * correlated(int((samples.windows == w).sum()), memory, rng) for w in np.unique(samples.windows)]
    return -1.0 + 0.4 * samples.cvs[:, 0] + np.concatenate(own)


def detect(samples: Frames, observables: list[Observable], grid: WindowGrid = GRID) -> HiddenStates:
    return find_hidden_states(
        observables, samples.windows, lambda rows, k: grid.reduced_bias(samples.cvs[rows], grid.centers[k])
    )


def honest(n: int, rng: np.random.Generator, memory: float = 0.8) -> tuple[Frames, list[Observable]]:
    samples = chain(n, rng, memory)
    angles = Observable("torsion", torsion(samples, rng, memory), 2 * np.pi)
    return samples, [angles, Observable("energy", samples.energies)]


# Statistics


@pytest.mark.parametrize(("n", "memory"), [(10, 0.9), (20, 0.8), (100, 0.95), (400, 0.0)])
def test_good_windows_are_left_alone(n: int, memory: float) -> None:
    rng = np.random.default_rng(1)
    results = [detect(*honest(n, rng, memory)) for _ in range(25)]
    assert sum(bool(r.disagreements) for r in results) <= 1
    assert min(len(r.pairs) for r in results) >= 6


def test_without_reweighting_neighbours_would_seem_to_disagree() -> None:
    """Broken on purpose: with biases of zero no frame is reweighted, and every pair of good windows is accused."""
    samples, observables = honest(400, np.random.default_rng(2), memory=0.0)
    assert not detect(samples, observables).disagreements
    flat = np.zeros((len(samples), len(CENTERS)))
    unweighted = find_hidden_states(observables, samples.windows, flat)
    assert len({(d.first, d.second) for d in unweighted.disagreements}) > 0.8 * len(unweighted.pairs) > 5


def test_a_wrong_force_constant_in_the_bias_is_noticed() -> None:
    samples, observables = honest(2000, np.random.default_rng(3), memory=0.0)
    softer = WindowGrid(GRID.axes, 0.5 * GRID.force_constants, GRID.periods, GRID.temperature_k)
    assert not detect(samples, observables).disagreements
    found = detect(samples, observables, softer)
    assert len(found.flagged) == len(CENTERS)
    assert not any(d.separate for d in found.disagreements)


def test_a_shift_that_errors_do_not_explain_is_found_and_one_within_them_is_not() -> None:
    rng = np.random.default_rng(4)
    samples, (angle, energy) = honest(400, rng, memory=0.0)
    shifted = Observable("energy", energy.values + 1.5 * KT * (samples.windows == 4))
    found = detect(samples, [angle, shifted])
    assert found.flagged
    assert {d.observable for d in found.disagreements} == {"energy"}
    assert found.blamed() == {4: ("energy",)}
    few = np.concatenate([np.flatnonzero(samples.windows == w)[:8] for w in WINDOWS])
    assert not detect(samples[few], [Observable("energy", shifted.values[few])]).disagreements


def test_slow_frames_are_not_counted_as_independent() -> None:
    """The same shift in as many frames, each held for 50 frames in a row, is no evidence."""
    rng = np.random.default_rng(5)
    samples, _ = honest(8, rng, memory=0.0)
    shift = 1.5 * KT * (samples.windows == 4)
    rows = np.repeat(np.arange(len(samples)), 50)
    assert not detect(samples[rows], [Observable("energy", (samples.energies + shift)[rows])]).disagreements


# Basins


@pytest.mark.parametrize("n", [10, 20, 50, 1000])
def test_windows_in_another_basin_are_found_and_no_others(n: int) -> None:
    rng = np.random.default_rng(6)
    found, planted_in_all, alarms = 0, 0, 0
    for _ in range(25 if n < 1000 else 5):
        samples, (angle, energy) = honest(n, rng)
        planted = set(rng.choice(WINDOWS, size=rng.integers(1, 4), replace=False).tolist())
        moved = angle.values + np.radians(120) * np.isin(samples.windows, list(planted))
        result = detect(samples, [Observable("torsion", moved, 2 * np.pi), energy])
        blamed = set(result.blamed())
        found += len(blamed & planted)
        planted_in_all += len(planted)
        alarms += bool(blamed - planted)
        assert all(d.separate and d.observable == "torsion" for d in result.disagreements)
    assert found >= 0.95 * planted_in_all
    assert alarms <= 1


def test_windows_pulled_from_one_in_a_wrong_basin_are_blamed_with_it() -> None:
    samples, (angle, _) = honest(20, np.random.default_rng(7))
    wrong = (3, 4, 5)
    moved = angle.values + np.pi * np.isin(samples.windows, wrong)
    result = detect(samples, [Observable("torsion", moved, 2 * np.pi)])
    assert {2, 3, 5, 6} <= set(result.flagged) <= {2, 3, 4, 5, 6}
    assert tuple(result.blamed()) == wrong
    first = result.disagreements[0]
    assert first.difference == pytest.approx(1)
    assert first.exits == 0
    assert "hold different basins of torsion" in str(first)


def test_disagreements_are_told_in_words() -> None:
    """Those of one observable together, the worst as the example; torsions in degrees."""

    def pair(first: int, second: int, observable: str, separate: bool) -> Disagreement:
        return Disagreement(first, second, observable, separate, 1.0, (0.5, -1.0), (9.0, 9.0), 0.0, 1e-6, None)

    found = [pair(3, 4, "torsion A B", True), pair(4, 5, "torsion A B", True), pair(3, 4, "energy", False)]
    states = HiddenStates(tuple(found), np.array([[3, 4], [4, 5], [5, 6]]), (8,))
    assert str(states).splitlines() == [
        "2 of 3 pairs of overlapping windows disagree:",
        "  2 hold different basins of torsion A B, such as windows 3 and 4 (28.6° against -57.3°)",
        "  1 differ in energy, such as windows 3 and 4 (0.5 against -1)",
        "windows without enough overlap to be compared: 1",
    ]
    assert str(HiddenStates((), states.pairs, ())) == "0 of 3 pairs of overlapping windows disagree"


def rotor(samples: Frames, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Return a threefold rotor that jumps to a random basin with probability `rate` a frame."""
    basins = []
    for window in np.unique(samples.windows):
        basin = rng.integers(3)
        for _ in range(int((samples.windows == window).sum())):
            basin = rng.integers(3) if rng.random() < rate else basin
            basins.append(basin)
    return 2 * np.pi / 3 * np.array(basins) + 0.2 * rng.standard_normal(len(samples))


def test_a_rotor_that_jumps_seldom_is_no_hidden_state_and_one_that_never_jumps_is() -> None:
    """About five jumps in 100 frames, too few for equal shares in any two windows; then none."""
    rng = np.random.default_rng(8)
    alarms = 0
    for _ in range(25):
        samples = chain(100, rng, 0.5)
        alarms += bool(detect(samples, [Observable("rotor", rotor(samples, 0.05, rng), 2 * np.pi)]).disagreements)
    assert alarms <= 1
    frozen = detect(samples, [Observable("rotor", rotor(samples, 0.0, rng), 2 * np.pi)])
    assert len(frozen.disagreements) >= 3
    folded = detect(samples, [Observable("methyl", rotor(samples, 0.0, rng), 2 * np.pi / 3)])
    assert not folded.disagreements


def test_windows_that_overlap_with_no_other_are_named() -> None:
    rng = np.random.default_rng(9)
    samples = chain(50, rng, windows=np.array([0, 1, 2, 8]))
    result = detect(samples, [Observable("energy", samples.energies)])
    assert result.unchecked == (8,)
    assert result.pairs.tolist() == [[0, 1], [1, 2]]


def test_a_table_of_biases_and_a_function_are_the_same_and_order_between_windows_does_not_matter() -> None:
    rng = np.random.default_rng(10)
    samples, observables = honest(30, rng)
    moved = Observable("torsion", observables[0].values + np.pi * (samples.windows == 4), 2 * np.pi)
    expected = detect(samples, [moved])
    table = GRID.reduced_bias(samples.cvs[:, None], GRID.centers)
    assert find_hidden_states([moved], samples.windows, table + 7.0).blamed() == expected.blamed()
    order = np.argsort(np.arange(len(samples)) % 30, kind="stable")  # frame by frame through all windows
    mixed = find_hidden_states(
        [Observable("torsion", moved.values[order], 2 * np.pi)], samples.windows[order], table[order]
    )
    assert mixed.disagreements == find_hidden_states([moved], samples.windows, table).disagreements


def test_bad_input_is_refused() -> None:
    windows, table = np.zeros(3, dtype=int), np.zeros((3, 1))
    with pytest.raises(InputError, match="'energy' needs a finite value for each of 3 frames"):
        find_hidden_states([Observable("energy", np.array([0.0, np.nan, 0.0]))], windows, table)
    with pytest.raises(InputError, match="a row for each frame"):
        find_hidden_states([Observable("energy", np.zeros(3))], windows, table[:2])


def test_bins_that_rest_on_distrusted_windows() -> None:
    points = np.array([[CENTERS[4]], [(CENTERS[4] + CENTERS[5]) / 2], [CENTERS[7]]])
    assert untrusted(points, GRID, WINDOWS, [4]).tolist() == [True, True, False]
    assert not untrusted(points, GRID, WINDOWS, []).any()


# Molecules


def test_observables_of_capped_alanine(alanine: MolecularSystem, alanine_conformations: np.ndarray) -> None:
    found = {o.name: o for o in observables_of(alanine.trajectory(alanine_conformations), np.zeros(24))}
    methyls = ["torsion ACE1-CH3 ACE1-C", "torsion ALA2-CA ALA2-CB", "torsion NME3-N NME3-C"]
    full = ["torsion ACE1-C ALA2-N", "torsion ALA2-N ALA2-CA", "torsion ALA2-CA ALA2-C", OMEGA]
    assert set(found) == {*methyls, *full, "handedness of ALA2-CA", "potential energy"}
    for name in methyls:
        assert found[name].period == pytest.approx(2 * np.pi / 3)
    for name in full:
        assert found[name].period == pytest.approx(2 * np.pi)
    phi, psi = (found[name].values for name in (full[1], full[2]))
    np.testing.assert_allclose(np.stack([phi, psi], 1), alanine.evaluate_cvs(alanine_conformations), atol=1e-4)
    mirrored = observables_of(alanine.trajectory(alanine_conformations * [1, 1, -1]))
    before, after = (next(o for o in group if "hand" in o.name).values for group in (found.values(), mirrored))
    np.testing.assert_allclose(np.abs(before - after), np.pi)
    turned = alanine_conformations.copy()
    turned[:, [11, 12, 13]] = turned[:, [12, 13, 11]]
    again = {o.name: o.values for o in observables_of(alanine.trajectory(turned))}
    difference = (again[methyls[1]] - found[methyls[1]].values) / (2 * np.pi / 3)
    assert np.abs(difference - np.round(difference)).max() < 0.2  # the atoms are shaken, so not quite equivalent
    assert np.abs(difference).max() > 0.8


def test_a_ring_has_torsions_and_its_methylenes_no_handedness(proline: MolecularSystem) -> None:
    names = [o.name for o in observables_of(proline.trajectory(proline.positions[None]))]
    assert [n for n in names if "hand" in n] == ["handedness of PRO2-CA"]
    assert "torsion PRO2-CG PRO2-CB" in names


def test_a_topology_without_bonds_is_refused(alanine: MolecularSystem) -> None:
    topology = alanine.mdtraj_topology.copy()
    topology._bonds = []
    with pytest.raises(InputError, match="no bonds"):
        observables_of(mdtraj.Trajectory(alanine.positions, topology))


@pytest.fixture(scope="module")
def psi_windows(alanine: MolecularSystem) -> tuple[MolecularSystem, WindowGrid, Frames, Frames]:
    """Seven windows of ψ, 20 frames each 40 fs apart, and the same windows from a start with a cis peptide bond."""
    molecule = changed(alanine, cvs=(Torsion("psi", (6, 8, 14, 16)),), bins=())
    grid, settings = WindowGrid.over(molecule.cvs, molecule.temperature_k), settings_of(molecule)
    x = molecule.positions
    axis, arms = (x[16] - x[14]) / np.linalg.norm(x[16] - x[14]), x[17:] - x[16]
    cis = np.concatenate([x[:17], x[16] + 2 * np.outer(arms @ axis, axis) - arms])  # half a turn
    pools = []
    for start in (x, cis):
        parts, psi, window = (
            [],
            molecule.evaluate_cvs(start[None])[0],
            grid.nearest(molecule.evaluate_cvs(start[None])[0]),
        )
        velocities = None
        for k in range(window, window + 7):
            center, k = grid.centers[k % 18], k % 18
            path = center - grid.difference(center, psi)
            segment = Segment(k, start, velocities, center, grid.force_constants, path, 400, 800, 400, 20, seed=k)
            (run,) = run_segments(settings, [segment], SerialExecutor(), 1)
            start, velocities, psi = run.final_positions, run.final_velocities, center
            parts.append(
                Frames(
                    positions=run.positions,
                    forces=run.forces,
                    energies=run.energies,
                    cvs=molecule.evaluate_cvs(run.positions),
                    labels=np.tile(center, (20, 1)),
                    windows=np.full(20, k),
                    log_weights=np.zeros(20),
                    source=np.full(20, MD),
                )
            )
        pools.append(Frames.concatenate(parts))
    return molecule, grid, pools[0], pools[1]


def test_a_cis_peptide_bond_is_found_in_simulated_windows(
    psi_windows: tuple[MolecularSystem, WindowGrid, Frames, Frames],
) -> None:
    molecule, grid, trans, cis = psi_windows
    good = hidden_states_in_frames(trans, grid, molecule)
    assert not good.disagreements, [str(d) for d in good.disagreements]
    assert len(good.pairs) >= 6
    for window in np.unique(trans.windows):
        mixed = Frames.concatenate([trans[trans.windows != window], cis[cis.windows == window]])
        result = hidden_states_in_frames(mixed, grid, molecule)
        assert set(result.blamed()) == {window}
        assert OMEGA in result.blamed()[int(window)]


def test_trajectories_with_their_biases_give_the_same(
    psi_windows: tuple[MolecularSystem, WindowGrid, Frames, Frames],
) -> None:
    molecule, grid, trans, cis = psi_windows
    windows = np.unique(trans.windows)
    frames = Frames.concatenate([trans[trans.windows != windows[3]], cis[cis.windows == windows[3]]])
    expected = hidden_states_in_frames(frames, grid, molecule)
    trajectories, biases, energies = [], [], []
    for window in windows:
        own = frames[frames.windows == window]
        trajectories.append(molecule.trajectory(own.positions - own.positions.mean(axis=1, keepdims=True)))
        biases.append(Umbrella(molecule.cvs, grid.centers[window], grid.force_constants))
        energies.append(own.energies)
    result = hidden_states_in_trajectories(trajectories, biases, molecule.temperature_k, energies)
    assert result.blamed() == {3: expected.blamed()[int(windows[3])]}
    assert windows[np.array(result.pairs)].tolist() == expected.pairs.tolist()
    without = hidden_states_in_trajectories(trajectories, biases, 300.0, atoms=range(molecule.n_atoms))
    assert 3 in without.blamed()
    with pytest.raises(InputError, match="each trajectory needs its bias"):
        hidden_states_in_trajectories(trajectories, biases[1:], 300.0)


def test_an_umbrella_takes_quantities_and_single_numbers(alanine: MolecularSystem) -> None:
    phi, trajectory = Torsion("phi", (4, 6, 8, 14)), alanine.trajectory(alanine.positions[None])
    plain = Umbrella([phi], [-1.0], [100.0])
    expected = 50 * phi.difference(phi.evaluate(trajectory), np.array(-1.0)) ** 2
    np.testing.assert_allclose(plain(trajectory), expected)
    constant = 100 * unit.kilojoule_per_mole / unit.radian**2
    for other in (
        Umbrella(phi, -1.0, 100.0),
        Umbrella([phi], [-1.0 * unit.radian], [constant]),
        Umbrella(phi, np.degrees(-1.0) * unit.degree, constant),
    ):
        np.testing.assert_allclose(other(trajectory), plain(trajectory))


def test_umbrella_data_that_cannot_be_meant_is_refused(alanine: MolecularSystem) -> None:
    phi, trajectory = Torsion("phi", (4, 6, 8, 14)), alanine.trajectory(alanine.positions[None])
    with pytest.raises(InputError, match="over 1 CVs needs as many numbers in center"):
        Umbrella([phi], [-1.0, 2.0], [100.0])
    with pytest.raises(InputError, match="CV 'phi': a force constant must be a number or a Quantity"):
        Umbrella([phi], [-1.0], ["stiff"])
    with pytest.raises(InputError, match="CV 'phi': a value must be a number or a Quantity in radian"):
        Umbrella([phi], [1 * unit.nanometer], [100.0])
    with pytest.raises(InputError, match="CV 'far' asks for atom 22, but the trajectory has 22"):
        Umbrella([Torsion("far", (4, 6, 8, 22))], [-1.0], [100.0])(trajectory)
    with pytest.raises(
        InputError, match="CV 'phi': -78 is more than a full turn: angles are in radians, or Quantities"
    ):
        Umbrella([phi], [-78.0], [2000.0])
    elsewhere = Umbrella([phi], [2.0], [2000.0])
    with pytest.raises(InputError, match=r"frames of trajectory 1 lie more than .* widths .* radians"):
        hidden_states_in_trajectories([trajectory] * 2, [Umbrella([phi], [-1.3], [100.0]), elsewhere], 300.0)
    with pytest.raises(InputError, match=r"trajectory 0 must be an mdtraj.Trajectory, got ndarray"):
        hidden_states_in_trajectories([alanine.positions], [elsewhere], 300.0)  # type: ignore[list-item]
