"""Hidden states: overlapping windows must agree on every torsion, handedness and the energy, and it shows when not.

A window that has fallen into another basin of a torsion that is no CV, a cis peptide bond say, samples the wrong
ensemble, and neither MBAR nor its error bars notice. `find_hidden_states` compares each pair of overlapping windows in
the ensemble that both cover and needs no free energies; `hidden_states_in_trajectories` takes anyone's umbrella data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mdtraj
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from openmm import unit
from scipy.special import expit

from .cvs import CollectiveVariable, as_cvs, strip_values
from .frames import Frames, rows_by_window
from .system import MolecularSystem
from .units import InputError, strip_units, thermal_energy
from .windows import WindowGrid

__all__ = [
    "Disagreement",
    "HiddenStates",
    "Observable",
    "Umbrella",
    "find_hidden_states",
    "hidden_states_in_frames",
    "hidden_states_in_trajectories",
    "observables_of",
    "untrusted",
]

ReducedBias = np.ndarray | Callable[[np.ndarray, int], np.ndarray]

FAMILY_ERROR = 0.01
"""Chance of a shift flagged by mistake anywhere in a data set, shared out over all tests (Bonferroni)."""
FARTHEST = 5.0
"""kT; windows whose mean of the two relative entropies is larger are not compared. Umbrellas 1.8 widths apart: 1.6."""
MOST_NEIGHBOURS = 6
"""Windows that each window is compared with at most, the closest first."""
LEAST_EFFECTIVE = 3.0
"""Effective frames that a window needs in the overlap to be compared at all."""
DISJOINT = 0.9
"""Two windows are in different basins when an arc holds this much more of one than of the other (Kuiper's V)."""
GAP = math.pi / 3
"""rad of a period; at least this lies between two basins. Neighbouring rotamers of a tetrahedral carbon leave 80°."""
TRIM = 0.05
"""Share of a window's weight beyond each end of its arc, or long windows would leave no gap."""
LEAST_EXITS = 0.5
"""Windows are stuck if one of their length is expected to change basins less often than this."""
REACH = 3
"""Exchange between two basins is looked for in windows up to this many steps of overlap away from the pair."""
CLEAR_MAJORITY = 4
"""Of two groups of windows that disagree the one that is so many times larger is right."""
SAY = 0.7
"""With each step away, a window has so many times less to say on which of two windows is in the wrong basin."""
FAR_KT = 50.0
PROBES = 20
"""Frames of each window from which it is found which windows overlap."""
UNTRUSTED_SHARE = 0.1
TORSION = "torsion "
"""With which the names of torsions begin."""
BASINS = "hold different basins of"
"""What is said of two windows that are not known to mix."""


@dataclass(frozen=True)
class Observable:
    """A property of every frame that overlapping windows must agree on.

    Attributes
    ----------
    name : as it is to stand in a report
    values : float64, shape (n,)
    period : of a periodic one, such as 2π for a torsion in radians and 2π/3 for that of a methyl group; else None
    """

    name: str
    values: np.ndarray
    period: float | None = None


@dataclass(frozen=True)
class Disagreement:
    """Two overlapping windows that do not agree on an observable.

    Attributes
    ----------
    first, second : the windows
    observable : its name
    separate : True where the two hold different basins between which nothing near them moves; False where the
        distributions differ by more than their statistical errors
    difference : Kuiper's V, the largest difference of the two windows' shares in an arc (or interval): 1 for disjoint
    typical : the two windows' mean values in the overlap, circular ones of a periodic observable, in its unit
    effective : effective independent frames of the two in the overlap; of a separate pair, frames as they are
    exits : changes of basin expected of a window of this length, by what was seen in the windows nearby; NaN where the
        two are not disjoint
    p_value : chance of so large a difference with that many independent frames, times the number of tests
    minority : of a separate pair, the window in whose basin fewer frames of the windows around it are; else None
    """

    first: int
    second: int
    observable: str
    separate: bool
    difference: float
    typical: tuple[float, float]
    effective: tuple[float, float]
    exits: float
    p_value: float
    minority: int | None

    def __str__(self) -> str:
        return f"windows {self.first} and {self.second} {self.how} {self.observable} ({self.against})"

    @property
    def how(self) -> str:
        return BASINS if self.separate else "differ in"

    @property
    def against(self) -> str:
        """The two mean values in words, of a torsion in degrees."""
        scale, unit = (180 / np.pi, "°") if self.observable.startswith(TORSION) else (1.0, "")
        a, b = (f"{scale * value:.3g}{unit}" for value in self.typical)
        return f"{a} against {b}"


@dataclass(frozen=True)
class HiddenStates:
    """What was compared, and where windows do not agree.

    Attributes
    ----------
    disagreements : the worst first
    pairs : int64, shape (m, 2); the pairs of windows that were compared
    unchecked : windows that overlap with no other window well enough to be compared
    """

    disagreements: tuple[Disagreement, ...]
    pairs: np.ndarray
    unchecked: tuple[int, ...]

    def __str__(self) -> str:
        """Return them in words, those of one observable together."""
        together: dict[tuple[str, str], list[Disagreement]] = {}
        for d in self.disagreements:
            together.setdefault((d.how, d.observable), []).append(d)
        apart = len({(d.first, d.second) for d in self.disagreements})
        lines = [f"{apart} of {len(self.pairs)} pairs of overlapping windows disagree{':' if apart else ''}"]
        lines += [
            f"  {len(found)} {how} {observable}, such as windows {found[0].first} and {found[0].second} "
            f"({found[0].against})"
            for (how, observable), found in together.items()
        ]
        if self.unchecked:
            lines.append(f"windows without enough overlap to be compared: {len(self.unchecked)}")
        return "\n".join(lines)

    @property
    def flagged(self) -> tuple[int, ...]:
        """Windows of any disagreement."""
        return tuple(sorted({w for d in self.disagreements for w in (d.first, d.second)}))

    def blamed(self) -> dict[int, tuple[str, ...]]:
        """Return the windows that stand against the consensus, and the observables in which they do.

        Separate pairs cut the windows into groups, as when one window was started from another in the wrong basin. Of
        two groups the far smaller one is in the minority, of similar ones that of most pairs' `minority`, and all its
        windows are blamed, those without a disagreement of their own too. Another
        disagreement is laid on a window that is blamed already where there is one, else on the window with the largest
        share of them among its pairs, one window after another.
        """
        found: dict[int, set[str]] = {}
        separate = [d for d in self.disagreements if d.separate]
        for name in dict.fromkeys(d.observable for d in separate):
            for window in self._against([d for d in separate if d.observable == name]):
                found.setdefault(window, set()).add(name)
        left = []
        for d in self.disagreements:
            known = {d.first, d.second} & set(found)
            for window in known if not d.separate else ():
                found[window].add(d.observable)
            if not known:
                left.append(d)
        while left:
            windows = sorted({w for d in left for w in (d.first, d.second)})
            worst = max(windows, key=lambda w: sum(w in (d.first, d.second) for d in left) / (self.pairs == w).sum())
            found[worst] = {d.observable for d in left if worst in (d.first, d.second)}
            left = [d for d in left if worst not in (d.first, d.second)]
        return {window: tuple(sorted(names)) for window, names in sorted(found.items())}

    def _against(self, separate: list[Disagreement]) -> set[int]:
        """Return the windows to blame for the separate pairs of one observable."""
        names, flat = np.unique(self.pairs, return_inverse=True)
        cut = {(d.first, d.second) for d in separate}
        links = flat.reshape(-1, 2)[[tuple(pair) not in cut for pair in self.pairs.tolist()]]
        graph = scipy.sparse.coo_matrix((np.ones(len(links)), links.T), shape=(len(names), len(names)))
        count, groups = scipy.sparse.csgraph.connected_components(graph, directed=False)
        group = dict(zip(names.tolist(), groups.tolist(), strict=True))
        sizes, balance, minority = np.bincount(groups), np.zeros(count), {}
        for d in separate:
            first, second = group[d.first], group[d.second]
            by_size = None
            if max(sizes[first], sizes[second]) >= CLEAR_MAJORITY * min(sizes[first], sizes[second]):
                by_size = d.first if sizes[first] < sizes[second] else d.second
            minority[d.first, d.second] = d.minority if by_size is None else by_size
            balance[first] += 1 if minority[d.first, d.second] == d.second else -1
            balance[second] += 1 if minority[d.first, d.second] == d.first else -1
        wrong = (balance < 0) & (sizes < len(names) / 2)
        blamed = {w for w in names.tolist() if wrong[group[w]]}
        return blamed | {w for pair, w in minority.items() if w is not None and not blamed & set(pair)}


def find_hidden_states(
    observables: Sequence[Observable],
    windows: np.ndarray,
    reduced_bias: ReducedBias,
    family_error: float = FAMILY_ERROR,
) -> HiddenStates:
    """Compare every pair of overlapping windows in every observable.

    Frames of windows k and l are reweighted to one and the same ensemble, π₀(x) / (exp(b_k) + exp(b_l + C)), with
    weights 1/(1 + exp(b_l − b_k + C)) and 1/(1 + exp(b_k − b_l − C)), which are Bennett's (1976) and exact for any
    C; it is chosen such that both samples count. The distributions are compared by Kuiper's V (1960), which knows no
    origin of a circle and finds the arc that tells two windows apart. Then one of two rules applies:

    - Disjoint, with a gap on both sides of the arc: the windows hold different basins, whose own fluctuations say
      nothing of how often basins change. That is read off the other windows nearby: if a window as long as these would
      be expected to leave its basin less than once in two lengths, the two are stuck and the pair is flagged, however
      few the frames. If more, few changes are what honest sampling of a slow rotor looks like, and only as many frames
      as there are changes count in the p-value.
    - Otherwise by the p-value of V, with frames divided by the statistical inefficiency of that observable.

    Parameters
    ----------
    observables : of the same n frames, see `observables_of`
    windows : int64, shape (n,); the window of each frame. A window's frames must be in the order of time
    reduced_bias : bias of window k on frame i in kT, up to a constant for each frame or window; float64, shape (n, K),
        or a function (frame indices, k) -> values, which spares the memory
    family_error : see `FAMILY_ERROR`
    """
    windows = np.asarray(windows, dtype=np.int64)
    data = _Data.of(observables, windows, reduced_bias)
    pairs = [_Pair.of(data, first, second) for first, second in _overlapping(data)]
    pairs = [pair for pair in pairs if min(pair.sizes) >= LEAST_EFFECTIVE]
    checked = np.array([pair.windows for pair in pairs], dtype=np.int64).reshape(-1, 2)
    steps = _steps_of_overlap(len(data.windows), checked)
    tests = max(1, len(checked) * len(data.names))
    found = [d for pair in pairs for d in _disagreements(data, pair, steps, tests, family_error)]
    names = np.array(data.windows, dtype=np.int64)
    return HiddenStates(
        disagreements=tuple(sorted(found, key=lambda d: (not d.separate, d.p_value))),
        pairs=names[checked],
        unchecked=tuple(int(w) for w in names if w not in names[checked]),
    )


def hidden_states_in_frames(frames: Frames, grid: WindowGrid, molecule: MolecularSystem) -> HiddenStates:
    """Compare the windows of this package's `frames`, which must be chains: simulated or injected, in time order."""
    if molecule.tied:
        observables = _coordinates(molecule, frames)
    else:
        positions = frames.positions - frames.positions.mean(axis=1, keepdims=True)  # mdtraj is in single precision
        observables = told_apart(observables_of(molecule.trajectory(positions), frames.energies))
    return find_hidden_states(
        observables, frames.windows, lambda rows, k: grid.reduced_bias(frames.cvs[rows], grid.centers[k])
    )


def hidden_states_in_trajectories(
    trajectories: Sequence[mdtraj.Trajectory],
    biases: Sequence[Callable[[mdtraj.Trajectory], np.ndarray]],
    temperature: Any,
    energies: Sequence[np.ndarray] | None = None,
    atoms: Iterable[int] | None = None,
) -> HiddenStates:
    """Compare the windows of anyone's umbrella sampling.

    >>> phi = sgm.Torsion("phi", (4, 6, 8, 14))
    >>> biases = [sgm.Umbrella([phi], [center], [100.0]) for center in centers]
    >>> trajectories = [mdtraj.load(file, top="topology.pdb") for file in files]
    >>> found = sgm.hidden_states_in_trajectories(trajectories, biases, 300 * unit.kelvin)
    >>> for disagreement in found.disagreements:
    ...     print(disagreement)
    >>> found.blamed()  # {7: ("torsion ALA2-C NME3-N",)}

    Parameters
    ----------
    trajectories : one for each window, in time order, its equilibration left out; a topology with bonds
    biases : one for each window; functions of a trajectory that return kJ/mol, shape (n_frames,), such as `Umbrella`
    temperature : of all windows, K
    energies : unbiased potential energies, kJ/mol, shape (n_frames,) for each window; None to compare torsions only
    atoms : the molecule whose torsions are compared, zero-based; None for all that is there
    """
    if len(trajectories) != len(biases):
        raise InputError(f"each trajectory needs its bias, got {len(trajectories)} and {len(biases)}")
    for k, part in enumerate(trajectories):
        if not isinstance(part, mdtraj.Trajectory):
            raise InputError(f"trajectory {k} must be an mdtraj.Trajectory, got {type(part).__name__}")
    beta = 1 / thermal_energy(strip_units(temperature, unit.kelvin))
    for k, (part, bias) in enumerate(zip(trajectories, biases, strict=True)):
        if isinstance(bias, Umbrella):  # of other biases the constant is not known
            _check_near(beta * bias(part[:]), k)
    reduced = np.concatenate(
        # each gets a copy: mdtraj.rmsd and other functions of mdtraj move the atoms of what they are given
        [np.stack([np.asarray(bias(part[:]), dtype=float) for bias in biases], axis=1) for part in trajectories]
    )
    selected = list(trajectories) if atoms is None else [part.atom_slice(list(atoms)) for part in trajectories]
    joined = mdtraj.join(selected, check_topology=False)
    values = None if energies is None else np.concatenate([np.asarray(e, dtype=float) for e in energies])
    windows = np.repeat(np.arange(len(trajectories)), [part.n_frames for part in trajectories])
    return find_hidden_states(told_apart(observables_of(joined, values)), windows, beta * reduced)


@dataclass(frozen=True)
class Umbrella:
    """A harmonic bias ½ Σ κ (ξ − c)² of a window, in kJ/mol, as a function of a trajectory.

    Attributes
    ----------
    cvs : one or more
    center : a value for each, Quantity or in the CV's unit; force_constants : likewise, kJ/mol/unit²
    """

    cvs: Sequence[CollectiveVariable]
    center: Sequence[Any]
    force_constants: Sequence[Any]

    def __post_init__(self) -> None:
        cvs = as_cvs([self.cvs] if isinstance(self.cvs, CollectiveVariable) else self.cvs)
        numbers = {}
        for name in ("center", "force_constants"):
            given = getattr(self, name)
            try:
                values = list(given)
            except TypeError:  # one number, or one Quantity
                values = [given]
            if len(values) != len(cvs):
                raise InputError(f"an umbrella over {len(cvs)} CVs needs as many numbers in {name}, got {given!r}")
            numbers[name] = values
        object.__setattr__(self, "cvs", cvs)
        center = strip_values(cvs, numbers["center"])
        constants = tuple(cv.strip_force_constant(v) for cv, v in zip(cvs, numbers["force_constants"], strict=True))
        object.__setattr__(self, "center", center)
        object.__setattr__(self, "force_constants", constants)

    def __call__(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        _check_atoms(self.cvs, trajectory.n_atoms)
        total = np.zeros(trajectory.n_frames)
        for cv, center, constant in zip(self.cvs, self.center, self.force_constants, strict=True):
            total += 0.5 * constant * cv.difference(cv.evaluate(trajectory), np.asarray(center)) ** 2
        return total


def _check_atoms(cvs: Sequence[CollectiveVariable], n_atoms: int) -> None:
    for cv in cvs:
        if cv.atoms and max(cv.atoms) >= n_atoms:
            raise InputError(
                f"CV '{cv.name}' asks for atom {max(cv.atoms)}, but the trajectory has {n_atoms}, counted from 0"
            )


def _check_near(own: np.ndarray, k: int) -> None:
    """Refuse a window whose frames lie far from its centre by their own umbrella, in kT."""
    if len(own) and np.median(own) > FAR_KT:
        raise InputError(
            f"half of the frames of trajectory {k} lie more than {np.sqrt(2 * np.median(own)):.0f} widths of its "
            "umbrella from its centre: are centres in radians or nm, and biases in the order of the trajectories?"
        )


def untrusted(points: np.ndarray, grid: WindowGrid, windows: np.ndarray, distrusted: Iterable[int]) -> np.ndarray:
    """Return where a surface rests on windows that cannot be trusted; bool, shape (m,).

    That is where they hold more than a tenth of Σ exp(−bias) over the windows that were sampled.

    points : float64, shape (m, n_cvs), such as the centres of a surface's bins
    windows, distrusted : the windows that were sampled, and those among them of `HiddenStates.flagged` or `.blamed()`
    """
    windows = np.unique(windows)
    reduced = grid.reduced_bias(points[:, None], grid.centers[windows])
    shares = np.exp(reduced.min(axis=1, keepdims=True) - reduced)
    shares /= shares.sum(axis=1, keepdims=True)
    return np.asarray(shares[:, np.isin(windows, list(distrusted))].sum(axis=1) > UNTRUSTED_SHARE)


# Observables of a molecule, and of particles tied to a place


def _coordinates(molecule: MolecularSystem, frames: Frames) -> list[Observable]:
    """Return every coordinate of every particle, and the energy."""
    names = [f"{axis} of {atom.residue}-{atom.name}" for atom in molecule.mdtraj_topology.atoms for axis in "xyz"]
    columns = frames.positions.reshape(len(frames), -1).T
    found = [Observable(name, column) for name, column in zip(names, columns, strict=True)]
    return [*found, Observable("potential energy", frames.energies)]


def told_apart(observables: Sequence[Observable]) -> list[Observable]:
    """Return those whose states are different: without torsions that a symmetry folds, of methyl groups and the like.

    What is left of such a torsion is how its groups stand between their neighbours, which changes within picoseconds.
    """
    full = 2 * math.pi * (1 - 1e-9)
    return [o for o in observables if not (o.name.startswith(TORSION) and o.period is not None and o.period < full)]


def observables_of(trajectory: mdtraj.Trajectory, energies: np.ndarray | None = None) -> list[Observable]:
    """Return a torsion about every bond that has one, the handedness of every stereocentre, and the energy.

    A torsion about a bond one of whose ends carries two or three equivalent groups, a methyl's hydrogens or a ring's
    two sides, is folded by that symmetry: turning them is no other state. A handedness is 0 or π. Bonds are those of
    the topology, which must have some.

    energies : kJ/mol, shape (n_frames,)
    """
    topology = trajectory.topology
    if topology.n_bonds == 0:
        raise InputError("the topology has no bonds, so that no torsion can be named: load one that has")
    neighbours: list[list[int]] = [[] for _ in range(topology.n_atoms)]
    for a, b in topology.bonds:
        neighbours[a.index].append(b.index)
        neighbours[b.index].append(a.index)
    elements = [0 if atom.element is None else atom.element.number for atom in topology.atoms]
    alike = _equivalence(neighbours, elements)
    branches = [sum(elements[n] > 1 for n in bonded) for bonded in neighbours]

    def priority(atom: int) -> tuple[bool, bool, int]:  # along the chain, so that φ, ψ, ω and χ are the usual ones
        return elements[atom] > 1, branches[atom] > 1, -atom

    names = [f"{atom.residue}-{atom.name}" for atom in topology.atoms]
    quads, folds, found = [], [], []
    for a, b in topology.bonds:
        i, j = sorted((a.index, b.index))
        ends = [sorted(n for n in neighbours[x] if n != y) for x, y in ((i, j), (j, i))]
        if all(ends):
            first, last = (max(end, key=priority) for end in ends)
            quads.append((first, i, j, last))
            folds.append(math.lcm(*(len(end) if len({alike[n] for n in end}) == 1 else 1 for end in ends)))
    if quads:
        angles = mdtraj.compute_dihedrals(trajectory, np.array(quads), periodic=False).astype(float)
        for (_, i, j, _), fold, column in zip(quads, folds, angles.T, strict=True):
            found.append(Observable(f"{TORSION}{names[i]} {names[j]}", column, 2 * math.pi / fold))
    for centre, bonded in enumerate(neighbours):
        if len(bonded) == 4 and len({alike[n] for n in bonded}) == 4:
            arms = trajectory.xyz[:, sorted(bonded)[:3]] - trajectory.xyz[:, [centre]]
            volume = np.linalg.det(arms.astype(float))
            found.append(Observable(f"handedness of {names[centre]}", np.where(volume > 0, 0.0, math.pi), 2 * math.pi))
    if energies is not None:
        found.append(Observable("potential energy", np.asarray(energies, dtype=float)))
    return found


def _equivalence(neighbours: Sequence[Sequence[int]], elements: Sequence[int]) -> list[int]:
    """Return a number for each atom, equal for atoms with the same bonds around them (Morgan 1965)."""
    colours = list(elements)
    while True:
        seen = [(colours[i], *sorted(colours[n] for n in bonded)) for i, bonded in enumerate(neighbours)]
        ranks = {key: rank for rank, key in enumerate(sorted(set(seen)))}
        if len(ranks) == len(set(colours)):
            return colours
        colours = [ranks[key] for key in seen]


# The comparison


@dataclass(frozen=True)
class _Data:
    """Frames sorted by window; a window is named by its rank among those with frames.

    Attributes
    ----------
    names, periodic : of the observables; values : float64, shape (n, n_observables), periodic ones as phases [0, 2π)
    units : period/2π of each observable, 1 where there is none
    windows : names of the windows; rows : of each window, rows of `values`; window_of : int64, shape (n,)
    inefficiencies : float64, shape (n_windows, n_observables)
    bias : (rows, window's rank) -> reduced bias
    """

    names: tuple[str, ...]
    periodic: np.ndarray
    values: np.ndarray
    units: np.ndarray
    windows: tuple[int, ...]
    rows: list[np.ndarray]
    window_of: np.ndarray
    inefficiencies: np.ndarray
    bias: Callable[[np.ndarray, int], np.ndarray]

    @staticmethod
    def of(observables: Sequence[Observable], windows: np.ndarray, reduced_bias: ReducedBias) -> _Data:
        for observable in observables:
            if np.shape(observable.values) != windows.shape or not np.isfinite(observable.values).all():
                raise InputError(f"'{observable.name}' needs a finite value for each of {len(windows)} frames")
        if not callable(reduced_bias) and len(reduced_bias) != len(windows):
            raise InputError(f"reduced_bias needs a row for each frame, got {len(reduced_bias)} and {len(windows)}")
        order = np.argsort(windows, kind="stable")
        present, window_of = np.unique(windows[order], return_inverse=True)
        periodic = np.array([o.period is not None for o in observables])
        units = np.array([1.0 if o.period is None else o.period / (2 * math.pi) for o in observables])
        values = np.stack([np.asarray(o.values, dtype=float)[order] for o in observables], axis=1) / units
        values[:, periodic] %= 2 * math.pi
        rows = rows_by_window(window_of)
        table = reduced_bias
        return _Data(
            names=tuple(o.name for o in observables),
            periodic=periodic,
            values=values,
            units=units,
            windows=tuple(int(w) for w in present),
            rows=rows,
            window_of=window_of,
            inefficiencies=_inefficiencies(values, periodic, rows),
            bias=lambda own, k: np.asarray(
                table(order[own], int(present[k])) if callable(table) else table[order[own], present[k]]
            ),
        )


def _inefficiencies(values: np.ndarray, periodic: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    """Return g ≥ 1 of each window and column of values (n, m), float64, shape (n_windows, m); phases by their exp(iθ).

    The larger of two: of the value, and of its squared deviation from the window's mean, since the amplitude of a
    vibration changes far more slowly than its phase. And of two again: the window's own, and that of the mean
    autocorrelation of all windows, since a short window does not see its own slow modes.
    """
    signal = np.where(periodic, np.exp(1j * np.where(periodic, values, 0.0)), values)
    result = np.ones((len(rows), len(periodic)))
    for power in (1, 2):
        own, correlations = [], []
        for window in rows:
            deviation = signal[window] - signal[window].mean(axis=0)
            if power == 2:
                deviation = np.abs(deviation) ** 2
                deviation = deviation - deviation.mean(axis=0)
            correlations.append(_autocorrelation(deviation))
            own.append(_integrated(correlations[-1], len(window)))
        longest = max(len(window) for window in rows)
        together, pairs = np.zeros((2, longest, len(periodic)))
        for correlation in correlations:
            n = len(correlation)
            count = (n - np.arange(n))[:, None] * (correlation[0] > 0)  # pairs of frames; constant columns say nothing
            together[:n] += count * correlation
            pairs[:n] += count
        mean = together / np.maximum(pairs, 1)
        result = np.maximum(result, own)
        shared = {n: _with_mean_unknown(mean[:n], n) for n in {len(window) for window in rows}}
        result = np.maximum(result, [shared[len(window)] for window in rows])
    return result


def _autocorrelation(deviation: np.ndarray) -> np.ndarray:
    """Return the autocorrelation at lags 0 to n − 1 of each column of (n, m) deviations; 0 for constant columns."""
    n = len(deviation)
    transform = np.fft.fft(deviation, 2 * n, axis=0)
    covariance = np.fft.ifft(np.abs(transform) ** 2, axis=0).real[:n] / (n - np.arange(n))[:, None]
    constant = covariance[0] <= 1e-20 * (1 + np.abs(deviation).max(axis=0)) ** 2
    return np.asarray(np.where(constant, 0.0, covariance / np.where(constant, 1.0, covariance[0])))


def _integrated(correlation: np.ndarray, n: int) -> np.ndarray:
    """Return max(1, 1 + 2 Σ (1 − t/n) C_t), the sum up to the first pair C_2i + C_2i+1 that is not positive.

    Chodera et al. 2007, equations 8–10; the end by Geyer (1992), as single terms of a vibration's change their sign.
    """
    even = correlation[: len(correlation) // 2 * 2]
    terms = ((1 - np.arange(len(even))[:, None] / n) * even).reshape(-1, 2, even.shape[1]).sum(axis=1)
    positive = np.cumprod(even.reshape(-1, 2, even.shape[1]).sum(axis=1) > 0, axis=0)
    return np.asarray(np.maximum(1.0, 2 * (terms * positive).sum(axis=0) - 1))


def _with_mean_unknown(correlation: np.ndarray, n: int) -> np.ndarray:
    """Return g from correlations about the mean of n frames itself, which are too small by the mean's variance, g/n."""
    g = np.ones(correlation.shape[1])
    for _ in range(20):
        share = np.minimum(g / n, 0.5)
        g = _integrated(correlation * (1 - share) + share, n)
    return np.minimum(g, n)


def _overlapping(data: _Data) -> list[tuple[int, int]]:
    """Return pairs of windows that overlap, by half the sum of the two relative entropies, which needs no free energy.

    ½ [⟨b_l − b_k⟩_k + ⟨b_k − b_l⟩_l], of a few frames of each window.
    """
    count = len(data.rows)
    probes = [own[np.linspace(0, len(own) - 1, min(PROBES, len(own))).astype(int)] for own in data.rows]
    rows, sizes = np.concatenate(probes), np.array([len(own) for own in probes])
    starts = np.cumsum(sizes) - sizes
    means = np.stack([np.add.reduceat(data.bias(rows, w), starts) / sizes for w in range(count)], axis=1)
    work = means - np.diag(means)[:, None]  # ⟨b_l − b_k⟩ in window k
    distance = (work + work.T) / 2
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :MOST_NEIGHBOURS]
    close = [(k, int(other)) for k in range(count) for other in nearest[k] if distance[k, other] < FARTHEST]
    return sorted({(min(pair), max(pair)) for pair in close})


@dataclass(frozen=True)
class _Pair:
    """Two overlapping windows, the weights of their frames towards what both cover, and the weights' effective size."""

    windows: tuple[int, int]
    weights: tuple[np.ndarray, np.ndarray]
    sizes: tuple[float, float]

    @staticmethod
    def of(data: _Data, first: int, second: int) -> _Pair:
        """Choose the constant C of `find_hidden_states` such that the mean weight of both windows is the same."""
        ours, theirs = (data.bias(data.rows[w], second) - data.bias(data.rows[w], first) for w in (first, second))

        def weights(constant: float) -> tuple[np.ndarray, np.ndarray]:
            return expit(-ours - constant), expit(theirs + constant)

        low, high = -max(ours.max(), theirs.max()) - 20, -min(ours.min(), theirs.min()) + 20
        for _ in range(25):
            middle = (low + high) / 2
            a, b = weights(middle)
            low, high = (middle, high) if a.mean() > b.mean() else (low, middle)
        a, b = weights((low + high) / 2)
        return _Pair((first, second), (a, b), (_effective_size(a), _effective_size(b)))


def _effective_size(weights: np.ndarray) -> float:
    """Return (Σw)²/Σw² (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _disagreements(
    data: _Data, pair: _Pair, steps: np.ndarray, tests: int, family_error: float
) -> Iterator[Disagreement]:
    """Compare two windows in every observable, see `find_hidden_states`."""
    k, other = pair.windows
    rows = np.concatenate([data.rows[k], data.rows[other]])
    signed = np.concatenate([pair.weights[0] / pair.weights[0].sum(), -pair.weights[1] / pair.weights[1].sum()])
    order = np.argsort(data.values[rows], axis=0)
    values = np.take_along_axis(data.values[rows], order, axis=0)
    difference = np.cumsum(signed[order], axis=0)  # F_k − F_l after each value
    ends = np.append(np.diff(values, axis=0) > 0, np.ones((1, values.shape[1]), dtype=bool), axis=0)
    before = np.where(ends, difference, np.inf).argmin(axis=0)
    last = np.where(ends, difference, -np.inf).argmax(axis=0)
    columns = np.arange(values.shape[1])
    kuiper = difference[last, columns] - difference[before, columns]
    sizes = np.array(pair.sizes)
    effective = np.maximum(sizes[:, None] / data.inefficiencies[list(pair.windows)], 1.0)
    disjoint = data.periodic & (kuiper >= DISJOINT)
    candidates = disjoint | (tests * _kuiper_p_values(kuiper, *effective) < family_error)
    for column in np.flatnonzero(candidates).tolist():
        count, exits, separate = effective[:, column], math.nan, False
        if disjoint[column]:
            arcs = _Arcs.between(values[:, column], signed[order[:, column]], int(before[column]), int(last[column]))
            exits = _expected_exits(data, pair, steps, column, arcs)
            separate = arcs.gap > GAP and exits < LEAST_EXITS
            if arcs.gap > GAP:
                count = sizes if separate else np.minimum(count, 1 + exits)
        p_value = min(1.0, tests * float(_kuiper_p_values(kuiper[column], *count)))
        if not separate and p_value >= family_error:
            continue
        typical = [_typical(data, column, w, pair.weights[i]) for i, w in enumerate(pair.windows)]
        yield Disagreement(
            first=data.windows[k],
            second=data.windows[other],
            observable=data.names[column],
            separate=separate,
            difference=float(kuiper[column]),
            typical=(typical[0], typical[1]),
            effective=(float(count[0]), float(count[1])),
            exits=exits,
            p_value=p_value,
            minority=data.windows[_minority(data, pair, steps, column)] if separate else None,
        )


def _kuiper_p_values(difference: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the chance of Kuiper's V ≥ `difference` for samples of `first` and `second` independent draws; any shape.

    Stephens 1970, as in Numerical Recipes, 3rd edition, section 14.3.4.
    """
    root = np.sqrt(first * second / (first + second))
    x = np.asarray((root + 0.155 + 0.24 / root) * difference)[..., None]
    j = np.arange(1, 11)
    series = 2 * ((4 * j**2 * x**2 - 1) * np.exp(-2 * j**2 * x**2)).sum(axis=-1)
    # below 0.4 it is 1 to seven digits, and the series does not converge
    return np.asarray(np.where(x[..., 0] < 0.4, 1.0, np.clip(series, 0.0, 1.0)))


def _typical(data: _Data, column: int, window: int, weights: np.ndarray) -> float:
    """Return the weighted mean value, of a periodic observable the circular one in (−period/2, period/2]."""
    values = data.values[data.rows[window], column]
    if not data.periodic[column]:
        return float(np.average(values, weights=weights))
    return float(np.angle(np.average(np.exp(1j * values), weights=weights)) * data.units[column])


@dataclass(frozen=True)
class _Arcs:
    """Where on the circle two windows lie apart.

    Attributes
    ----------
    start : phase at which the first's arc starts
    first_end, second_start, second_end : from there, rad
    """

    start: float
    first_end: float
    second_start: float
    second_end: float

    @staticmethod
    def between(values: np.ndarray, signed: np.ndarray, before: int, last: int) -> _Arcs:
        """Return the arcs of sorted phases of which those after `before` up to `last` are mainly the first window's.

        signed : weights of the phases, the second window's negative; `TRIM` of them is left out at each end of an arc
        """
        n = len(values)
        around = (before + 1 + np.arange(n)) % n
        place = (values[around] - values[around[0]]) % (2 * math.pi)
        split = (last - before) % n
        ends = []
        for own, sign in ((slice(0, split), 1), (slice(split, n), -1)):
            weights = np.maximum(sign * signed[around[own]], 0.0)
            share = np.cumsum(weights) / weights.sum()
            ends += [place[own][np.searchsorted(share, q)] for q in (TRIM, 1 - TRIM)]
        start = float(values[around[0]] + ends[0])
        return _Arcs(start, *(float(end - ends[0]) for end in ends[1:]))

    @property
    def gap(self) -> float:
        """The smaller of the two gaps between the arcs, rad."""
        return min(self.second_start - self.first_end, 2 * math.pi - self.second_end)

    def states(self, phases: np.ndarray, first: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return (in the arc of the first or second, out of it: in the other or farther than `GAP` from its ends)."""
        place = (phases - self.start) % (2 * math.pi)
        one, other = place <= self.first_end, (place >= self.second_start) & (place <= self.second_end)
        inside, low, high = (one, 0.0, self.first_end) if first else (other, self.second_start, self.second_end)
        middle, half = (low + high) / 2, (high - low) / 2
        distance = np.abs((place - middle + math.pi) % (2 * math.pi) - math.pi) - half
        return inside, (other if first else one) | (distance > GAP)


def _steps_of_overlap(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return how many steps from pair to pair lie between two windows, inf where there is no way."""
    graph = scipy.sparse.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(scipy.sparse.csgraph.shortest_path((graph + graph.T).tocsr(), unweighted=True))


def _expected_exits(data: _Data, pair: _Pair, steps: np.ndarray, column: int, arcs: _Arcs) -> float:
    """Return how often a window would leave its basin in its own length: 0 where one of the two basins is never left.

    That is the geometric mean of the pair's two numbers, since leaving one basin for a third says nothing of the other.
    The rates are those of the other windows up to `REACH` steps away; the pair itself is here because it did not move.
    A frame neither in nor out of a basin counts as where its window was last (core sets: Buchete & Hummer 2008).
    """
    near = [w for w in np.flatnonzero(steps[list(pair.windows)].min(axis=0) <= REACH) if w not in pair.windows]
    if not near:
        return 0.0
    rows = np.concatenate([data.rows[w] for w in near])
    expected = 1.0
    for k, w in enumerate(pair.windows):
        inside, outside = arcs.states(data.values[rows, column], first=k == 0)
        known = inside | outside
        state, window = inside[known], data.window_of[rows[known]]
        left = state[:-1] & ~state[1:] & (window[1:] == window[:-1])
        expected *= left.sum() / max(1, state.sum()) * len(data.rows[w])
    return math.sqrt(expected)


def _minority(data: _Data, pair: _Pair, steps: np.ndarray, column: int) -> int:
    """Return which of the pair's windows has fewer frames of the others on its side of the circle.

    Near ones count more: elsewhere another basin may be the right one.
    """
    here = [np.exp(1j * data.values[data.rows[w], column]).mean() for w in pair.windows]
    away = steps[list(pair.windows)].min(axis=0)
    votes = 0.0
    for w in np.flatnonzero(np.isfinite(away) & (away > 0)):
        directions = np.exp(1j * data.values[data.rows[w], column])
        first, second = (np.abs(np.angle(directions / mean)) for mean in here)
        votes += SAY ** away[w] * (np.mean(first < second) - 0.5)
    return pair.windows[0] if votes < 0 else pair.windows[1]
