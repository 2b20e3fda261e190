"""Exploration beyond its height: ridges, what lies behind them, and what is named when it is left out."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
from openmm import app

import openmm_sgm as sgm
from openmm_sgm.campaign import Campaign
from openmm_sgm.explore import explore, unreached
from openmm_sgm.system import MolecularSystem

HEIGHT = 64.0
"""kJ/mol, of the two barriers between the two equal wells at 0 and π."""


def chain_of_four(height: float = HEIGHT) -> MolecularSystem:
    """Return four atoms in a row whose torsion, the CV, has a two-fold barrier; they begin at π."""
    system, topology = openmm.System(), app.Topology()
    residue, atoms = topology.addResidue("MOL", topology.addChain()), []
    for k in range(4):
        system.addParticle(16.0)
        atoms.append(topology.addAtom(f"O{k}", app.element.oxygen, residue))
    bonds, angles, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for k in range(3):
        topology.addBond(atoms[k], atoms[k + 1])
        bonds.addBond(k, k + 1, 0.14, 1e5)
    for k in range(2):
        angles.addAngle(k, k + 1, k + 2, 1.9, 400.0)
    torsion.addTorsion(0, 1, 2, 3, 2, np.pi, height / 2)
    for force in (bonds, angles, torsion):
        system.addForce(force)
    across, along = 0.14 * np.sin(1.9), 0.14 * np.cos(1.9)
    positions = np.array([[along, across, 0], [0, 0, 0], [0.14, 0, 0], [0.14 - along, -across, 0.001]])
    tau = sgm.Torsion("tau", (0, 1, 2, 3))
    return MolecularSystem("four", topology, system, positions, (tau,), 300.0, 1.0, 5.0)


def explored(budget: int, height: float = HEIGHT) -> Campaign:
    campaign = Campaign(chain_of_four(height), sgm.SamplerOptions(), np.random.SeedSequence(1), lambda line: None)
    explore(campaign, budget, generate=False)
    return campaign


def test_the_lowest_ridge_is_crossed_and_the_well_behind_it_found() -> None:
    """Before, exploration ended at 40 kJ/mol, and the well at 0 was never seen."""
    campaign = explored(120_000)
    assert len(campaign.walkers) == len(campaign.grid.centers) == 36
    heights = (campaign.free_energies - np.nanmin(campaign.free_energies)) / campaign.beta
    well = np.abs(campaign.grid.centers[:, 0]) < 0.3
    assert heights[well].max() < 25, "equal wells, up to what pulling over the ridge has left"
    ridge = np.abs(np.abs(campaign.grid.centers[:, 0]) - np.pi / 2) < 0.1
    assert heights[ridge].min() > 45


def test_windows_on_the_lowest_ridge_are_sampled_with_the_wells() -> None:
    """Those of the other ridge, which joins nothing more, need not be."""
    campaign = explored(120_000)
    campaign.free_energies = campaign.beta * HEIGHT * np.sin(campaign.grid.centers[:, 0]) ** 2
    campaign.free_energies[campaign.grid.centers[:, 0] > 0] *= 1.2  # the higher ridge
    windows, shares = campaign.active_windows()
    centers = campaign.grid.centers[windows, 0]
    assert (np.abs(centers + np.pi / 2) < 0.1).any()
    assert not (np.abs(centers - np.pi / 2) < 0.1).any()
    assert shares.sum() == pytest.approx(1)


def test_without_a_ridge_to_join_windows_end_at_the_height() -> None:
    campaign = explored(120_000)
    campaign.free_energies = campaign.beta * 50.0 * np.sin(campaign.grid.centers[:, 0] / 2) ** 2
    centers = campaign.grid.centers[campaign.active_windows()[0], 0]
    assert np.abs(centers).max() < 2.3, "one well: what is above 40 kJ/mol joins nothing"


def test_what_the_budget_leaves_is_named() -> None:
    campaign = explored(3_000)
    too_high, unaffordable = unreached(campaign)
    assert unaffordable
    assert not too_high
    assert campaign.share_of(np.zeros(0, dtype=int), unaffordable) > 0


@pytest.mark.slow
def test_wells_behind_a_ridge_have_their_weights() -> None:
    """Two equal wells, 64 kJ/mol between them: their populations by symmetry, from a start in one."""
    sampler = sgm.ScoreSampler(chain_of_four(), seed=1, workers=0)
    sampler.run(force_evaluations=40_000)
    estimate = sampler.estimate()
    share, error = estimate.average(np.abs(estimate.samples.column("cvs")[:, 0]) < np.pi / 2)
    assert abs(share - 0.5) < 4 * error
    assert error < 0.05


def test_a_pocket_on_a_slope_is_no_reason_to_climb() -> None:
    """Rough free energies have dips at 30 kJ/mol behind a rim of 50: they are no basins of the surface."""
    campaign = explored(120_000)
    x = campaign.grid.centers[:, 0]
    campaign.free_energies = campaign.beta * 60.0 * np.sin(x / 2) ** 2
    campaign.free_energies[np.abs(x - 2.7) < 0.1] = campaign.beta * 35.0
    assert np.abs(campaign.grid.centers[campaign.active_windows()[0], 0]).max() < 2.9
    assert not (np.abs(np.abs(x[campaign.active_windows()[0]]) - 2.3) < 0.1).any()
