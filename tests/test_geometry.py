"""Bonds, angles, torsions and structures for the report, against weights and shapes that are known.

Seen to fail with windows that count by their frames, weights left out, a window that only one kind has, the mean of
squares taken for the spread, degrees taken for radians, superposition by a mirror image or without the rotation, the
sample with the smallest weight, and the highest bins kept instead of the lowest.
"""

from __future__ import annotations

import numpy as np
import pytest
from analytic import ANGLE_RAD, BOND_NM, triatomic

from openmm_sgm import geometry
from openmm_sgm.frames import GENERATED, MD, Frames, Selection
from openmm_sgm.free_energy import Estimate, Surface
from openmm_sgm.geometry import compare_geometry, structures_of_bins, superposed
from openmm_sgm.system import MolecularSystem


def frames_of(positions: np.ndarray, windows: list[int], log_weights: list[float], source: int) -> Frames:
    n = len(positions)
    cvs = np.zeros((n, 1))
    return Frames(
        positions,
        np.zeros_like(positions),
        np.zeros(n),
        cvs,
        cvs,
        np.array(windows),
        np.array(log_weights),
        np.full(n, source),
    )


def stretched(lengths: list[float]) -> np.ndarray:
    """Return the three atoms with the first bond at these lengths, everything else as at the start."""
    start = triatomic().positions
    result = np.repeat(start[None], len(lengths), axis=0)
    result[:, 0] = start[1] + (start[0] - start[1]) * np.array(lengths)[:, None] / BOND_NM
    return result


def test_bonds_and_angles_are_averaged_over_windows_that_both_have() -> None:
    """Window 0 has three simulated frames and counts as much as window 1, which has one; window 2 has no draws."""
    simulated = frames_of(stretched([0.14, 0.14, 0.14, 0.16, 0.30]), [0, 0, 0, 1, 2], [0.0] * 5, MD)
    log_weights = [5.0, -np.inf, np.log(3.0), 0.0]
    generated = frames_of(stretched([0.14, 0.18, 0.16, 0.20]), [0, 0, 1, 1], log_weights, GENERATED)
    found = compare_geometry(triatomic(), simulated, generated)
    assert found["geometry_bonds"].tolist() == [[0, 1], [1, 2]]
    assert found["geometry_angles"].tolist() == [[0, 1, 2]]
    assert found["geometry_torsions"].shape == (0, 4)
    assert found["geometry_histograms"].shape == (3, 0, geometry.TORSION_BINS)
    means, spreads = found["geometry_bond_mean"], found["geometry_bond_spread"]
    # simulated; as drawn, where the draw of weight zero counts in window 1's equal too; reweighted
    lengths = np.array([0.14, 0.18, 0.16, 0.20])
    for row, weights in ((1, np.full(4, 0.25)), (2, np.array([0.5, 0.0, 0.375, 0.125]))):
        assert means[row, 0] == pytest.approx(weights @ lengths, abs=1e-6)
        assert spreads[row, 0] == pytest.approx(np.sqrt(weights @ (lengths - weights @ lengths) ** 2), abs=1e-6)
    assert means[0, 0] == pytest.approx(0.15, abs=1e-6)
    assert spreads[0, 0] == pytest.approx(0.01, abs=1e-6)
    np.testing.assert_allclose(means[:, 1], BOND_NM, atol=1e-6)
    np.testing.assert_allclose(found["geometry_angle_mean"][:, 0], ANGLE_RAD, atol=1e-5)


def test_nothing_is_compared_where_no_window_has_both() -> None:
    simulated = frames_of(stretched([0.14, 0.15]), [0, 1], [0.0, 0.0], MD)
    generated = frames_of(stretched([0.14, 0.15]), [1, 2], [-np.inf, 0.0], GENERATED)
    assert compare_geometry(triatomic(), simulated, generated) == {}


def test_torsions_are_the_cvs_and_others_once_a_bond(alanine: MolecularSystem, alanine_conformations) -> None:
    n = len(alanine_conformations)
    cvs = alanine.evaluate_cvs(alanine_conformations)
    frames = frames_of(alanine_conformations, [0] * n, [0.0] * n, GENERATED)
    found = compare_geometry(alanine, frames, frames)
    names, torsions = found["geometry_torsion_names"].tolist(), found["geometry_torsions"]
    assert names[:2] == ["phi", "psi"]
    assert 2 < len(names) <= 2 + geometry.MOST_TORSIONS
    assert len({frozenset(row) for row in torsions[:, 1:3].tolist()}) == len(names)
    edges = np.linspace(-np.pi, np.pi, geometry.TORSION_BINS + 1)
    for k in range(2):
        expected = np.histogram(cvs[:, k], edges, density=True)[0]
        for row in range(3):
            np.testing.assert_allclose(found["geometry_histograms"][row, k], expected, atol=1e-9)
    np.testing.assert_allclose(found["geometry_histograms"].sum(axis=2) * 2 * np.pi / geometry.TORSION_BINS, 1.0)


def turned(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return x @ (rotation * np.sign(np.linalg.det(rotation))) + rng.normal(size=3)


@pytest.mark.parametrize("flat", [False, True], ids=["in space", "in a plane"])
def test_superposition_undoes_a_rotation(flat: bool) -> None:
    rng = np.random.default_rng(4)
    start = rng.normal(size=(7, 3))
    start[:, 2] *= not flat
    moved = np.array([turned(start, rng) for _ in range(5)])
    np.testing.assert_allclose(
        superposed(moved, start), np.repeat((start - start.mean(axis=0))[None], 5, axis=0), atol=1e-10
    )


def test_superposition_keeps_the_handedness() -> None:
    start = np.random.default_rng(5).normal(size=(7, 3))
    mirrored = start * [1, 1, -1]
    found = superposed(mirrored[None], start)[0]

    def handedness(x: np.ndarray) -> float:
        return float(np.linalg.det(x[1:4] - x[0]))

    assert np.sign(handedness(found)) == np.sign(handedness(mirrored)) != np.sign(handedness(start))


def estimate_of(positions: np.ndarray, cvs: list[float], log_weights: list[float], values: list[float]) -> Estimate:
    """Return an estimate with these samples over bins of width 1 with these free energies."""
    n, edges = len(cvs), np.arange(len(values) + 1.0)
    surface = Surface(np.array(values), np.ones(len(values)), (edges,), ("r",), ("nm",))
    column = np.array(cvs)[:, None]
    frames = Frames(
        positions, np.zeros_like(positions), np.zeros(n), column, column, np.zeros(n, int), np.zeros(n), np.ones(n, int)
    )
    replicas = np.ones((n, 2), dtype=np.float32)
    return Estimate(np.zeros(1), np.zeros(1), surface, Selection.of([frames]), np.array(log_weights), replicas)


def test_each_bin_shows_its_weightiest_sample() -> None:
    """Bin 1 is empty, bin 3's value is unknown, and one sample lies outside."""
    rng = np.random.default_rng(6)
    lengths = [0.11, 0.12, 0.13, 0.14, 0.15, 0.16]
    positions = np.array([turned(x, rng) for x in stretched(lengths)])
    cvs, log_weights = [0.5, 0.2, 2.5, 2.6, 3.5, 9.0], [-3.0, -1.0, -1.0, -2.0, 0.0, 0.0]
    estimate = estimate_of(positions, cvs, log_weights, [1.0, np.nan, 0.0, np.nan])
    found = structures_of_bins(triatomic(), estimate)
    assert found["structure_bins"].tolist() == [0, 2]
    shown = found["structures"] / geometry.PM_PER_NM
    np.testing.assert_allclose(np.linalg.norm(shown[:, 0] - shown[:, 1], axis=1), [0.12, 0.13], atol=0.001)
    start = triatomic().positions
    np.testing.assert_allclose(shown.mean(axis=1), 0, atol=0.001)
    far = np.abs(shown - (start - start.mean(axis=0))).max()
    assert far < 0.03  # a tenth of the molecule: turned onto the start, but for the bond that is shorter


def test_the_lowest_bins_have_structures_where_there_is_no_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "MOST_COORDINATES", 2 * 3 * 3)
    estimate = estimate_of(stretched([0.14] * 4), [0.5, 1.5, 2.5, 3.5], [0.0] * 4, [2.0, 9.0, 0.0, 4.0])
    assert structures_of_bins(triatomic(), estimate)["structure_bins"].tolist() == [0, 2]


def test_a_molecule_that_two_bytes_cannot_hold_has_no_structures() -> None:
    positions = stretched([0.14])
    positions[0, 2] += 80.0
    assert structures_of_bins(triatomic(), estimate_of(positions, [0.5], [0.0], [0.0])) == {}
