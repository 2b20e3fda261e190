"""Reference surfaces over two torsions by umbrella sampling with OpenMM and pymbar alone; nothing of this package.

    python reference_umbrella.py sample SYSTEM OUTPUT REPLICA [options]
    python reference_umbrella.py analyse SYSTEM OUTPUT REPLICAS [--hidden A B C D]
    python reference_umbrella.py hops SYSTEM OUTPUT REPLICA --hidden A B C D

SYSTEM is a folder of `systems/` with two torsions as CVs. `sample` makes one replica, in one process, and keeps it in
OUTPUT; every replica takes its own way through the windows. `analyse` writes `surface.csv` and, with a hidden torsion,
`hidden.csv`. `hops` counts how often the hidden torsion changes its basin in plain dynamics in some of the windows.

**Windows** (18 × 18, κ = 100 kJ/mol/rad²) are reached by pulling from a window beside them, any of those visited, in
an order that is random within `--wander` kJ/mol, and only while their free energy, by the mean force on the umbrellas
on the way, is below `--highest`; those above are bistable (see `alanine_dipeptide_vacuum/reference/README.md`). A
window in which a peptide bond turns to cis or the Cα inverts is thrown away, and may be reached from another side.

**A hidden torsion** (`--hidden`, atoms) is made to hop freely by a bias on it alone, per window: a Fourier series,
raised by repulsive kernels with a falling rate (metadynamics on the coefficients, the kernel a truncated series too)
and then fixed, at a share `--flatness` of it: the torsion still hops, and more frames have weight in the end than at
1 (for capped serine 12 % of the frames at 1, 34 % at 0.8, by Kish). MBAR undoes it exactly: each window is one state,
with umbrella and series as its bias.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
import tomllib
from pathlib import Path

import numpy as np
import openmm
import pymbar
from openmm import app

WINDOWS, BINS = 18, 36
FORCE_CONSTANT = 100.0
SPACING = 2 * np.pi / WINDOWS
CENTERS = -np.pi + (np.arange(WINDOWS) + 0.5) * SPACING
GRID = np.stack([a.ravel() for a in np.meshgrid(CENTERS, CENTERS, indexing="ij")], axis=1)
INTERVAL = 100
HARMONICS, KERNEL_RAD, DEPOSIT = np.arange(1, 5), 0.35, 50
LOW_KJ_MOL, HIGHEST_KJ_MOL, HIDDEN_BELOW_KJ_MOL = 20.92, 40.0, 25.0
MBAR_FRAMES = 40_000
CORE_RAD = np.radians(40)


def wrap(angle: np.ndarray) -> np.ndarray:
    return angle - 2 * np.pi * np.floor(angle / (2 * np.pi) + 0.5)


def torsion(x: np.ndarray, atoms: tuple[int, ...]) -> np.ndarray:
    """Return the torsion, shape (n,), of positions (n, n_atoms, 3)."""
    a, b, c = (x[:, atoms[i + 1]] - x[:, atoms[i]] for i in range(3))
    n = np.cross(b, c)
    y = np.linalg.norm(b, axis=1) * (a * n).sum(1)
    return np.arctan2(y, (np.cross(a, b) * n).sum(1))


def series(coefficients: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return Σ_n a_n cos nθ + b_n sin nθ, coefficients (2, n_harmonics)."""
    phase = HARMONICS * angle[..., None]
    return np.cos(phase) @ coefficients[0] + np.sin(phase) @ coefficients[1]


class Molecule:
    """A system with movable umbrellas on its CVs and, with `hidden`, a Fourier series on that torsion."""

    def __init__(self, folder: Path, hidden: tuple[int, ...] | None, seed: int) -> None:
        given = tomllib.loads((folder / "system.toml").read_text())
        pdb = app.PDBFile(str(folder / given["topology"]))
        self.names = [cv["name"] for cv in given["cv"]]
        self.torsions = [tuple(cv["atoms"]) for cv in given["cv"]]
        self.hidden = hidden
        self.kt = 0.00831446261815324 * given["temperature_k"]
        system = app.ForceField(*given["force_field"]).createSystem(
            pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds
        )
        for k, atoms in enumerate(self.torsions):
            bias = openmm.CustomTorsionForce(
                f"0.5*{FORCE_CONSTANT}*d^2; d=u-2*pi*floor(u/(2*pi)+0.5); u=theta-center{k}; pi={np.pi!r}"
            )
            bias.addGlobalParameter(f"center{k}", 0.0)
            bias.addTorsion(*atoms, [])
            system.addForce(bias)
        if hidden:
            terms = "+".join(f"a{n}*cos({n}*theta)+b{n}*sin({n}*theta)" for n in HARMONICS)
            bias = openmm.CustomTorsionForce(terms)
            for name, n in itertools.product("ab", HARMONICS):
                bias.addGlobalParameter(f"{name}{n}", 0.0)
            bias.addTorsion(*hidden, [])
            system.addForce(bias)
        integrator = openmm.LangevinMiddleIntegrator(
            given["temperature_k"], given["friction_per_ps"], given["time_step_fs"] / 1000
        )
        integrator.setRandomNumberSeed(seed)
        self.context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
        self.context.setPositions(pdb.positions)
        self.context.applyConstraints(1e-6)
        self.context.setVelocitiesToTemperature(given["temperature_k"], seed)
        self.steps = integrator.step
        atoms = {(a.residue.index, a.name): a.index for a in pdb.topology.atoms()}
        self.omegas = [
            (atoms[r, "CA" if (r, "CA") in atoms else "CH3"], atoms[r, "C"], atoms[r + 1, "N"], c)
            for r in range(pdb.topology.getNumResidues() - 1)
            for c in [atoms.get((r + 1, "CA"), atoms.get((r + 1, "C")))]
        ]
        self.alpha = [tuple(atoms[r, n] for n in ("CA", "N", "C", "CB")) for r, name in atoms if name == "CB"]
        self.hand = np.sign(self._volumes(self.positions[None]))[0]

    @property
    def positions(self) -> np.ndarray:
        return np.array(self.context.getState(positions=True).getPositions(asNumpy=True)._value)

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return the CVs and the hidden torsion, shape (n, 2 or 3), of positions (n, n_atoms, 3)."""
        wanted = self.torsions + ([self.hidden] if self.hidden else [])
        return np.stack([torsion(x, atoms) for atoms in wanted], axis=1)

    def _volumes(self, x: np.ndarray) -> np.ndarray:
        sides = [[x[:, i] - x[:, four[0]] for i in four[1:]] for four in self.alpha]
        return np.stack([(np.cross(n, c) * b).sum(1) for n, c, b in sides], axis=1)

    def sound(self, x: np.ndarray) -> bool:
        """Return whether every peptide bond is trans and every Cα as it was at the start."""
        trans = all((np.abs(torsion(x, atoms)) > np.pi / 2).all() for atoms in self.omegas)
        return trans and bool((np.sign(self._volumes(x)) == self.hand).all())

    def set_centers(self, center: np.ndarray) -> None:
        for k, value in enumerate(center):
            self.context.setParameter(f"center{k}", float(value))

    def set_series(self, coefficients: np.ndarray) -> None:
        if self.hidden:
            for name, row in zip("ab", coefficients, strict=True):
                for n, value in zip(HARMONICS, row, strict=True):
                    self.context.setParameter(f"{name}{n}", float(value))

    def pull(self, here: np.ndarray, there: np.ndarray, steps: int) -> None:
        for share in np.linspace(0, 1, 41)[1:]:
            self.set_centers(here + share * (there - here))
            self.steps(steps // 40)

    def flatten(self, coefficients: np.ndarray, steps: int) -> np.ndarray:
        """Return coefficients that make the hidden torsion flat, improved from those given during `steps`."""
        if not self.hidden:
            return coefficients
        now, late = coefficients.copy(), []
        rounds = steps // DEPOSIT
        kernel = np.exp(-0.5 * (HARMONICS * KERNEL_RAD) ** 2)
        for i in range(rounds):
            self.steps(DEPOSIT)
            phase = HARMONICS * torsion(self.positions[None], self.hidden)
            height = 0.05 * self.kt * min(1, 0.25 * rounds / (i + 1))
            now += height * kernel * np.array([np.cos(phase), np.sin(phase)])
            self.set_series(now)
            if i >= rounds // 2:
                late.append(now.copy())
        return np.mean(late, axis=0)

    def run(self, frames: int) -> np.ndarray:
        x = []
        for _ in range(frames):
            self.steps(INTERVAL)
            x.append(self.positions)
        return np.array(x)


def neighbours(window: int) -> list[tuple[int, np.ndarray]]:
    """Return the windows beside a window and the steps to them in radians."""
    found = []
    for k, step in itertools.product((0, 1), (-1, 1)):
        index = list(divmod(window, WINDOWS))
        index[k] = (index[k] + step) % WINDOWS
        found.append((index[0] * WINDOWS + index[1], step * SPACING * np.eye(2)[k]))
    return found


def sample(options: argparse.Namespace) -> None:
    """Visit the windows of one replica and keep their frames, torsions only, in OUTPUT."""
    rng = np.random.default_rng([options.replica, 20])
    molecule = Molecule(options.system, options.hidden, int(rng.integers(1, 2**31)))
    started = time.perf_counter()
    start = molecule.values(molecule.positions[None])[0]
    first = int((wrap(GRID - start[:2]) ** 2).sum(1).argmin())
    known = {}
    if options.series:
        with np.load(options.series) as file:
            known = dict(zip(file["windows"].tolist(), file["flat"], strict=True))
    kept: dict[int, dict] = {}
    estimate: dict[int, float] = {first: 0.0}
    failed: set[tuple[int, int]] = set()
    window, parent = first, -1
    while True:
        origin = kept[parent]["center"] if parent >= 0 else start[:2]
        center = origin + wrap(GRID[window] - origin)
        coefficients = np.zeros((2, len(HARMONICS)))
        if parent >= 0:
            molecule.context.setPositions(kept[parent]["x"])
            molecule.context.setVelocitiesToTemperature(molecule.kt / 0.00831446261815324, int(rng.integers(1, 2**31)))
            coefficients = kept[parent]["flat"]
        coefficients = known.get(window, coefficients)
        molecule.set_series(coefficients)
        molecule.pull(origin, center, options.pull)
        flat = molecule.flatten(coefficients, options.adapt * (1 if parent >= 0 or known else 5))
        coefficients = options.flatness * flat
        molecule.set_series(coefficients)
        molecule.steps(options.equilibration)
        high = estimate[window] > options.full_below
        x = molecule.run(round(options.frames * (options.high_share if high else 1)))
        values = molecule.values(x)
        if molecule.sound(x):
            weight = np.exp(series(coefficients, values[:, 2]) / molecule.kt) if options.hidden else np.ones(len(x))
            force = -FORCE_CONSTANT * np.average(wrap(values[:, :2] - GRID[window]), axis=0, weights=weight)
            beside = [(kept[v], d) for v, d in neighbours(window) if v in kept]
            if beside:  # the step is from the window to its neighbour
                estimate[window] = np.mean([v["f"] - 0.5 * (v["force"] + force) @ d for v, d in beside])
            kept[window] = {
                "x": x[-1], "values": values, "series": coefficients, "force": force,
                "f": estimate[window], "center": center, "flat": flat,
            }  # fmt: skip
        else:
            failed.add((parent, window))
            print(f"window {window}, from {parent}: cis peptide or inverted, thrown away", flush=True)
        lowest = min(v["f"] for v in kept.values())
        ways: dict[int, list[tuple[int, float]]] = {}
        for v, here in kept.items():
            for w, d in neighbours(v):
                if w not in kept and (v, w) not in failed:
                    ways.setdefault(w, []).append((v, here["f"] + here["force"] @ d))
        for w, ends in ways.items():
            estimate[w] = float(np.mean([f for _, f in ends]))
        open_windows = [w for w in ways if estimate[w] - lowest < options.highest]
        if not open_windows:
            break
        window = min(open_windows, key=lambda w: estimate[w] + options.wander * rng.random())
        parent = ways[window][rng.integers(len(ways[window]))][0]
    windows = np.array(sorted(kept))
    np.savez(
        options.output / f"replica-{options.replica}.npz",
        windows=windows,
        series=np.array([kept[w]["series"] for w in windows]),
        flat=np.array([kept[w]["flat"] for w in windows]),
        samples=np.concatenate([np.column_stack([np.full(len(v["values"]), w), v["values"]]) for w, v in kept.items()]),
        x=np.array([kept[w]["x"] for w in windows]),
    )
    print(f"replica {options.replica}: {len(windows)} windows, {time.perf_counter() - started:.0f} s", flush=True)


# Analysis


def umbrellas(values: np.ndarray, windows: np.ndarray, kt: float, force_constant: float = FORCE_CONSTANT) -> np.ndarray:
    """Return the umbrellas of windows on the CVs, kT, shape (n_windows, n)."""
    one = [0.5 * force_constant / kt * wrap(values[None, :, k] - CENTERS[:, None]) ** 2 for k in (0, 1)]
    return one[0][windows // WINDOWS] + one[1][windows % WINDOWS]


def biases(values: np.ndarray, windows: np.ndarray, coefficients: np.ndarray, kt: float) -> np.ndarray:
    """Return umbrellas and, with a hidden torsion, series, kT, shape (n_windows, n)."""
    total = umbrellas(values, windows, kt)
    if values.shape[1] > 2:
        phase = HARMONICS * values[:, 2:]
        total += coefficients.reshape(len(windows), -1) @ np.hstack([np.cos(phase), np.sin(phase)]).T / kt
    return total


def weights(path: Path, kt: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the frames of one replica and their unbiased weights, by MBAR over its windows below `HIGHEST_KJ_MOL`."""
    with np.load(path) as file:
        windows, coefficients, samples = file["windows"], file["series"], file["samples"]
    f = None
    while True:
        samples = samples[np.isin(samples[:, 0], windows)]
        samples = samples[np.argsort(samples[:, 0], kind="stable")]
        thin = samples[:: max(1, len(samples) // MBAR_FRAMES)]
        counts = np.array([(thin[:, 0] == w).sum() for w in windows])
        bias = biases(thin[:, 1:], windows, coefficients, kt)
        mbar = pymbar.MBAR(bias, counts, initial_f_k=f, solver_protocol="robust", relative_tolerance=1e-8)
        f = np.asarray(mbar.f_k)
        counts = np.array([(samples[:, 0] == w).sum() for w in windows])
        weight, total = np.empty(len(samples)), np.zeros(len(windows))
        for chunk in np.array_split(np.arange(len(samples)), 1 + len(samples) // 10_000):
            values = samples[chunk, 1:]
            weight[chunk] = 1 / (counts @ np.exp(f[:, None] - biases(values, windows, coefficients, kt)))
            total += np.exp(-umbrellas(values, windows, kt)) @ weight[chunk]
        height = -kt * np.log(total)
        keep = height - height.min() < HIGHEST_KJ_MOL
        if keep.all():
            return samples[:, 1:], weight, len(windows)
        windows, coefficients, f = windows[keep], coefficients[keep], f[keep] - f[keep][0]


def free_energy(p: np.ndarray, kt: float) -> np.ndarray:
    return np.where(p > 0, -kt * np.log(np.where(p > 0, p, 1)), np.nan)


def align(surfaces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the surfaces aligned by their means below `LOW_KJ_MOL`, their mean (minimum 0), and its standard error."""
    sampled = np.isfinite(surfaces).all(axis=0)
    for _ in range(3):
        mean = np.where(sampled, surfaces.mean(axis=0), np.nan)
        surfaces = surfaces - surfaces[:, mean - np.nanmin(mean) < LOW_KJ_MOL].mean(axis=1).reshape(-1, 1, 1)
    error = np.where(sampled, surfaces.std(axis=0, ddof=1) / np.sqrt(len(surfaces)), np.nan)
    return surfaces, mean - np.nanmin(mean), error


def write(path: Path, header: list[str], rows: list[list[float]], digits: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            writer.writerow(["" if np.isnan(v) else format(v, d) for v, d in zip(row, digits, strict=True)])


def analyse(options: argparse.Namespace) -> None:
    molecule = Molecule(options.system, options.hidden, 1)
    kt, edges = molecule.kt, np.linspace(-np.pi, np.pi, BINS + 1)
    constant = kt * (1.8 / SPACING) ** 2
    surfaces, windows, shares = [], [], []
    for replica in range(options.replica):
        values, weight, n = weights(options.output / f"replica-{replica}.npz", kt)
        print(f"replica {replica}: {n} windows below {HIGHEST_KJ_MOL:g} kJ/mol, {len(values)} frames", flush=True)
        p = np.histogram2d(values[:, 0], values[:, 1], bins=[edges, edges], weights=weight)[0]
        surfaces.append(free_energy(p, kt))
        if options.hidden:
            biased = weight * np.exp(-umbrellas(values, np.arange(WINDOWS**2), kt, constant))
            basin = np.floor(values[:, 2] / (2 * np.pi / 3)).astype(int) % 3  # (0, 120°), (120°, 240°), (240°, 360°)
            share = np.stack([biased[:, basin == b].sum(axis=1) for b in range(3)], axis=1)
            total = biased.sum(axis=1)
            windows.append(free_energy(total.reshape(WINDOWS, WINDOWS), kt))
            with np.errstate(invalid="ignore"):
                shares.append(share / total[:, None])
    aligned, mean, error = align(np.array(surfaces))
    below = mean < LOW_KJ_MOL
    for a, b in itertools.combinations(range(len(aligned)), 2):
        print(f"replicas {a} and {b}: {(aligned[a] - aligned[b])[below].std():.2f} kJ/mol RMS below 5 kcal/mol")
    print(f"standard error there, RMS: {np.sqrt(np.mean(error[below] ** 2)):.2f} kJ/mol, {below.sum()} bins")
    axis = -np.pi + (np.arange(BINS) + 0.5) * 2 * np.pi / BINS
    rows = [[axis[i], axis[j], mean[i, j], error[i, j]] for i, j in np.ndindex(mean.shape)]
    header = [*molecule.names, "free_energy_kj_mol", "std_error_kj_mol"]
    write(options.output / "surface.csv", header, rows, [".6f", ".6f", ".4f", ".4f"])
    if not options.hidden:
        return
    _, height, _ = align(np.array(windows))
    share = np.mean(shares, axis=0)
    share_error = np.std(shares, axis=0, ddof=1) / np.sqrt(len(shares))
    low = np.flatnonzero(height.ravel() < HIDDEN_BELOW_KJ_MOL)
    rows = [[*GRID[w], constant, height.ravel()[w], *share[w], *share_error[w]] for w in low]
    names = ("g_plus", "trans", "g_minus")
    header = [
        *molecule.names, "force_constant", "free_energy_kj_mol",
        *(f"population_{n}" for n in names), *(f"std_error_{n}" for n in names),
    ]  # fmt: skip
    write(options.output / "hidden.csv", header, rows, [".6f", ".6f", ".4f", ".4f", *[".5f"] * 6])
    print(f"{len(low)} windows below {HIDDEN_BELOW_KJ_MOL:g} kJ/mol")
    spread = np.std(shares, axis=0, ddof=1)[low]
    rms = np.sqrt(np.mean(spread**2))
    print(f"populations in them, spread over replicas, RMS: {rms:.3f}, largest {spread.max():.3f}")


def hops(options: argparse.Namespace) -> None:
    """Count the hops of the hidden torsion between the cores of its basins, ±40° about 60°, 180° and −60°."""
    molecule = Molecule(options.system, options.hidden, options.replica + 77)
    with np.load(options.output / f"replica-{options.replica}.npz") as file:
        starts = dict(zip(file["windows"].tolist(), file["x"], strict=True))
    for degrees in options.at.split():
        center = np.radians([float(v) for v in degrees.split(",")])
        window = int((wrap(GRID - center) ** 2).sum(1).argmin())
        molecule.context.setPositions(starts[window])
        molecule.set_centers(GRID[window])
        molecule.steps(5_000)
        values = molecule.values(molecule.run(options.frames))[:, 2]
        basin = np.floor(values / (2 * np.pi / 3)).astype(int) % 3
        core = basin[np.abs(wrap(3 * values + np.pi)) < 3 * CORE_RAD]
        ns = options.frames * INTERVAL * 2e-6
        share = np.bincount(basin, minlength=3) / len(basin)
        count = (np.diff(core) != 0).sum()
        print(f"{np.degrees(GRID[window])}: {count} hops in {ns:g} ns, shares {share.round(3)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=["sample", "analyse", "hops"])
    parser.add_argument("system", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("replica", type=int, help="number of this replica; for `analyse`, how many there are")
    parser.add_argument("--hidden", type=int, nargs=4, help="zero-based atoms of a torsion that hides")
    parser.add_argument("--pull", type=int, default=2_000, help="steps from a window to the next")
    parser.add_argument("--adapt", type=int, default=10_000, help="steps to flatten the hidden torsion in a window")
    parser.add_argument("--flatness", type=float, default=0.8, help="share of the flattening series that is applied")
    parser.add_argument("--series", type=Path, help="a replica, whose series are where the flattening starts from")
    parser.add_argument("--equilibration", type=int, default=5_000)
    parser.add_argument("--frames", type=int, default=1_000, help="per window, one every 100 steps")
    parser.add_argument("--full-below", type=float, default=30.0, help="kJ/mol; higher windows have fewer frames")
    parser.add_argument("--high-share", type=float, default=0.35, help="frames of those, as a share")
    parser.add_argument("--highest", type=float, default=42.0, help="kJ/mol; estimates above are not visited")
    parser.add_argument("--wander", type=float, default=15.0, help="kJ/mol; randomness of the order")
    parser.add_argument("--at", default="", help="for `hops`: windows as --at='-80,60 60,-50', degrees")
    options = parser.parse_args()
    options.hidden = tuple(options.hidden) if options.hidden else None
    options.output.mkdir(parents=True, exist_ok=True)
    {"sample": sample, "analyse": analyse, "hops": hops}[options.command](options)


if __name__ == "__main__":
    main()
