"""Reference along ψ alone, and the share of φ > 0 in every ψ window, from two-dimensional umbrella sampling.

    python make_psi.py FOLDER [REPLICAS]

FOLDER holds the frames that `../../alanine_dipeptide_vacuum/reference/make_umbrella_below_40.py FOLDER` left there,
windows in φ and ψ. MBAR over its windows below 40 kJ/mol gives every frame its weight in the unbiased ensemble; the
umbrella of a ψ window, 18 of them as the package would place them, then weights the frames again. Writes `surface.csv`
and `hidden.csv` into FOLDER. OpenMM and pymbar alone; nothing of this package.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "alanine_dipeptide_vacuum" / "reference"))
from make_umbrella_below_40 import BINS, CENTERS, KT, WINDOWS, solve, weighted_frames

FORCE_CONSTANT = KT * (1.8 / (2 * np.pi / WINDOWS)) ** 2
LOW_KJ_MOL = 20.92


def along_psi(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return F of the ψ bins, F of the ψ windows (kJ/mol), and the share of φ > 0 in each window."""
    windows, f, _ = solve(samples)
    own, weights = weighted_frames(samples, windows, f)
    phi, psi = own[:, 1], own[:, 2]
    p, _ = np.histogram(psi, bins=np.linspace(-np.pi, np.pi, BINS + 1), weights=weights)
    d = psi[None] - CENTERS[:, None]
    d -= 2 * np.pi * np.floor(d / (2 * np.pi) + 0.5)
    biased = weights * np.exp(-0.5 * FORCE_CONSTANT * d**2 / KT)
    return -KT * np.log(p), -KT * np.log(biased.sum(axis=1)), biased[:, phi > 0].sum(axis=1) / biased.sum(axis=1)


def mean_and_error(values: np.ndarray, align: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard error over replicas, free energies aligned by their mean below 5 kcal/mol."""
    if align:
        mean = values.mean(axis=0)
        values = values - values[:, mean - mean.min() < LOW_KJ_MOL].mean(axis=1)[:, None]
    mean = values.mean(axis=0)
    return mean - (mean.min() if align else 0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def write(path: Path, header: list[str], columns: list[np.ndarray], formats: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for line in zip(*columns, strict=True):
            writer.writerow([format(value, form) for value, form in zip(line, formats, strict=True)])


def main(folder: Path, replicas: int) -> None:
    results = [along_psi(np.load(folder / f"replica-{replica}.npy")) for replica in range(replicas)]
    surfaces, windows, shares = (np.array(values) for values in zip(*results, strict=True))
    free_energy, error = mean_and_error(surfaces, align=True)
    axis = -np.pi + (np.arange(BINS) + 0.5) * 2 * np.pi / BINS
    header = ["psi", "free_energy_kj_mol", "std_error_kj_mol"]
    write(folder / "surface.csv", header, [axis, free_energy, error], [".6f", ".4f", ".4f"])
    window, _ = mean_and_error(windows, align=True)
    share, share_error = mean_and_error(shares, align=False)
    write(
        folder / "hidden.csv",
        ["psi", "force_constant", "free_energy_kj_mol", "population", "std_error"],
        [CENTERS, np.full(WINDOWS, FORCE_CONSTANT), window, share, share_error],
        [".6f", ".4f", ".4f", ".4e", ".1e"],
    )
    np.set_printoptions(precision=3, linewidth=150)
    print("share of φ > 0 per ψ window, each replica:", shares.T, sep="\n")
    print("relative standard error:", share_error / share)
    pairs = [(a - b)[free_energy < LOW_KJ_MOL].std() for i, a in enumerate(surfaces) for b in surfaces[:i]]
    print("difference of two replicas below 5 kcal/mol, kJ/mol RMS:", np.array(pairs))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4)
