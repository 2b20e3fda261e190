"""Learned CVs: a function of distances or coordinates, from a diffusion map, TICA or a network, that biases OpenMM."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import nn

from .cv_functions import MLP, MODULES, DiffusionCoordinate, LinearProjection
from .cvs import CollectiveVariable
from .diffusion_maps import DiffusionMap
from .features import Features, PairDistances
from .units import InputError, one_line

__all__ = [
    "Distilled",
    "OffSupportWarning",
    "TorchCV",
    "diffusion_cv",
    "distil",
]

OPENMM_UNITS = 32
"""Variables that one CustomCVForce can hold."""
DISTIL_ITERATIONS = 300
WEIGHT_DECAY = 1e-5
OFF_MARGIN = 0.1
"""Off the data a diffusion coordinate is held this fraction of its range below the range."""


class OffSupportWarning(UserWarning):
    """A learned CV was asked about configurations unlike those it was learned from, and does not bias them."""


class TorchCV(CollectiveVariable):
    """A CV that is a torch module of features of the positions; dimensionless.

    OpenMM runs it as a `PythonForce` (OpenMM 8.4 or later), at the cost of a call of Python each step. Of pair
    distances, a `LinearProjection` and an `MLP` with one hidden layer of at most `OPENMM_UNITS` tanh units need no
    Python: they become OpenMM forces, on any platform. `distil` makes such a network of any other CV.

    A system that holds a PythonForce is serialised with a pickle of this module's classes inside the XML, which passes
    between the processes of a run in memory; they must be able to import the class of the module. `save` writes no
    pickle. Write the XML of such a system to no file, and read none that you did not write.

    >>> features = PairDistances(itertools.combinations(heavy_atoms, 2))
    >>> found = fit_diffusion_map(cv_features, n_coordinates=2, max_landmarks=300)
    >>> cv = diffusion_cv("psi1", found, 0, features)
    >>> fast = distil(cv, cv_features).cv
    >>> fast.save(folder)

    Parameters
    ----------
    module : float64 (n, d) to (n,) or (n, 1), smooth, each row for itself. It is copied as it is now, in its evaluation
        mode, so that training it further changes neither the values nor the bias of this CV. If it has a method
        `support`, (n, d) to (n,) in [0, 1], it must be constant where that is 0, and an `OffSupportWarning` says of
        how many frames that is so
    features : `PairDistances` or `Coordinates`
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        features: Features,
        minimum: Any = None,
        maximum: Any = None,
        *,
        windows: int | None = None,
        force_constant: Any = None,
    ) -> None:
        super().__init__(
            name, features.atoms, "", minimum=minimum, maximum=maximum, windows=windows, force_constant=force_constant
        )
        if not isinstance(module, nn.Module):
            raise InputError(f"CV '{name}': a torch.nn.Module of the features is needed, got {type(module).__name__}")
        try:
            frozen = copy.deepcopy(module).eval()  # OpenMM pickles it into a bias: one that changes later would differ
            probe = frozen(torch.ones((1, features.n_features), dtype=torch.float64))
            fits = probe.numel() == 1 and probe.dtype == torch.float64
        except RuntimeError as error:
            raise InputError(f"CV '{name}': the module fails on float64 features: {one_line(error)}") from None
        if not fits:
            raise InputError(f"CV '{name}': the module must return one float64 number for each row of features")
        self.module: Any = frozen
        self.features = features

    def force(self) -> openmm.Force:
        if isinstance(self.features, PairDistances):
            if isinstance(self.module, LinearProjection):
                return _weighted_distances(self.features, self.module.vector, self.module.mean)
            if _runs_in_openmm(self.module):
                return self._network_force("cv_value")
        if not hasattr(openmm, "PythonForce"):
            raise InputError(f"CV '{self.name}' needs OpenMM 8.4 or later, which has PythonForce")
        force = openmm.PythonForce(_Evaluator(self.name, self.module, self.features), {})
        force.setParticles(self.atoms)
        return force

    def bias_force(self, prefix: str) -> openmm.Force:
        if isinstance(self.features, PairDistances) and _runs_in_openmm(self.module):
            return self._with_bias_parameters(self._network_force(self._bias_energy("cv_value", prefix)), prefix)
        return super().bias_force(prefix)

    def _network_force(self, energy: str) -> openmm.CustomCVForce:
        """Return `energy`, an expression of cv_value, where that is Σ_h v_h tanh(b_h + Σ_p W_hp r_p) + c."""
        assert isinstance(self.features, PairDistances)
        first, second = self.module.layers[0], self.module.layers[2]
        hidden = zip(second.weight[0].tolist(), first.bias.tolist(), strict=True)
        terms = [f"({v!r})*tanh(hidden{h}+({b!r}))" for h, (v, b) in enumerate(hidden)]
        force = openmm.CustomCVForce(f"{energy}; cv_value={'+'.join(terms)}+({second.bias.item()!r})")
        for h, weights in enumerate(first.weight.detach()):
            force.addCollectiveVariable(f"hidden{h}", _weighted_distances(self.features, weights))
        return force

    def _features(self, trajectory: mdtraj.Trajectory) -> torch.Tensor:
        return self.features(torch.as_tensor(trajectory.xyz.astype(np.float64)))

    def _values(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        off = int((self.support(trajectory) == 0).sum())
        if off:
            warnings.warn(_off_message(self.name, f"{off} of {trajectory.n_frames} frames"), OffSupportWarning, 3)
        with torch.no_grad():
            return self.module(self._features(trajectory)).numpy()

    def support(self, trajectory: mdtraj.Trajectory) -> np.ndarray:
        """Return how far the data that the CV was learned from support it: float64, shape (n_frames,), in [0, 1].

        All 1 where the module does not know.
        """
        if not hasattr(self.module, "support"):
            return np.ones(trajectory.n_frames)
        with torch.no_grad():
            return self.module.support(self._features(trajectory)).numpy()

    def save(self, folder: Path) -> None:
        """Write the CV as `cv.json` and `cv.safetensors` into `folder`, which is made.

        Raises
        ------
        InputError
            for a module that is not one of `MODULES`: an arbitrary module has no description without its code.
        """
        kind = type(self.module).__name__
        if MODULES.get(kind) is not type(self.module):
            raise InputError(f"CV '{self.name}': a {kind} cannot be saved; {', '.join(MODULES)} can")
        data = {
            "name": self.name,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "windows": self.windows,
            "force_constant": self.force_constant,
            "features": self.features.to_dict(),
            "module": {"kind": kind, **self.module.description()},
        }
        if isinstance(self.module, DiffusionCoordinate):
            arrays = {name: torch.as_tensor(value) for name, value in self.module.map.arrays().items()}
        else:
            arrays = self.module.state_dict()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: array.contiguous() for name, array in arrays.items()}, folder / "cv.safetensors")
        (folder / "cv.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TorchCV:
        """Return the CV that `save` wrote.

        Raises
        ------
        InputError
            when the folder holds none, or one that is damaged.
        """
        folder = Path(folder)
        try:
            data = json.loads((folder / "cv.json").read_text(encoding="utf-8"))
            arrays = load_file(folder / "cv.safetensors")
            description = data.pop("module")
            module = MODULES[description.pop("kind")].build(arrays, **description)
            features = Features.from_dict(data.pop("features"))
            return cls(module=module, features=features, **data)
        except FileNotFoundError as error:
            raise InputError(f"{folder} holds no learned CV: {error.filename} is missing") from None
        except (SafetensorError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, OSError) as error:
            raise InputError(f"the learned CV in {folder} is damaged: {one_line(error)}") from None


def diffusion_cv(
    name: str,
    diffusion_map: DiffusionMap,
    coordinate: int,
    features: Features,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    windows: int | None = None,
    force_constant: Any = None,
) -> TorchCV:
    """Return coordinate `coordinate` (from 0) of a map of `features` as a CV; its range is by default the landmarks'.

    Off the data the CV is held at a value below its range and its landmarks', `OFF_MARGIN` of the range away. Its
    frames then fall in no bin, an umbrella's energy there is constant and its force zero, and the step up to it at the
    edge of the data keeps a simulation from leaving them to escape its umbrella. It remains a function of the
    configuration, so that reweighting stays exact; the step itself lies where the kernel density falls from the
    landmarks' 1 % quantile to a hundredth of that.
    """
    if not 0 <= coordinate < diffusion_map.eigenvectors.shape[1]:
        raise InputError(f"the map has {diffusion_map.eigenvectors.shape[1]} coordinates, counted from 0")
    psi = diffusion_map.eigenvectors[:, coordinate]
    low = float(psi.min()) if minimum is None else float(minimum)
    high = float(psi.max()) if maximum is None else float(maximum)
    lowest, highest = min(low, float(psi.min())), max(high, float(psi.max()))
    module = DiffusionCoordinate(diffusion_map, coordinate, lowest - OFF_MARGIN * (highest - lowest))
    return TorchCV(name, module, features, low, high, windows=windows, force_constant=force_constant)


@dataclass(frozen=True)
class Distilled:
    """A small network in the place of a CV, and how well it stands for it on points that it was not fitted to.

    Attributes
    ----------
    cv : a `TorchCV` whose module is an `MLP` with one hidden layer; of the same name, range and windows
    r_squared : 1 − mean squared error/variance
    rank_correlation : Spearman's
    """

    cv: TorchCV
    r_squared: float
    rank_correlation: float


def distil(cv: TorchCV, features: np.ndarray, *, hidden: int = 6, seed: int = 0) -> Distilled:
    """Return a network of `hidden` tanh units fitted to `cv` at features (n, d), by least squares (L-BFGS).

    It is a CV in its own right, as exact in reweighting as any, at the cost of OpenMM forces. It does not know where
    its data end: off them its value and gradient are bounded but mean nothing, and it biases. `support` of the CV that
    it stands for tells which frames those were; points off the support are not fitted to. Every third point is held
    out.
    """
    points = torch.as_tensor(np.asarray(features, dtype=np.float64))
    if points.ndim != 2 or points.shape[1] != cv.features.n_features:
        raise InputError(f"CV '{cv.name}' is of {cv.features.n_features} features, got shape {tuple(points.shape)}")
    with torch.no_grad():
        if hasattr(cv.module, "support"):
            points = points[cv.module.support(points) == 1]
        target = cv.module(points).reshape(-1)
    if len(points) < 3 * hidden:
        raise InputError(f"{hidden} hidden units need {3 * hidden} points or more on the data, got {len(points)}")
    mean, scale = points.mean(0), points.std(0).clamp(min=1e-6)
    z, held_out = (points - mean) / scale, torch.arange(len(points)) % 3 == 2
    network = MLP((points.shape[1], hidden, 1))
    first: Any = network.layers[0]
    second: Any = network.layers[2]
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.copy_(torch.as_tensor(rng.normal(size=layer.weight.shape) / np.sqrt(layer.weight.shape[1])))
            layer.bias.zero_()
    optimiser = torch.optim.LBFGS(
        network.parameters(), max_iter=DISTIL_ITERATIONS, history_size=30, line_search_fn="strong_wolfe"
    )
    variance = target.var()

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        error = ((network(z[~held_out]) - target[~held_out]) ** 2).mean() / variance
        total = error + WEIGHT_DECAY * (first.weight**2).mean() * points.shape[1]
        total.backward()
        return total

    optimiser.step(loss)
    network.requires_grad_(False)
    found, wanted = network(z[held_out]), target[held_out]
    first.weight /= scale
    first.bias -= first.weight @ mean
    return Distilled(
        TorchCV(
            cv.name, network, cv.features, cv.minimum, cv.maximum, windows=cv.windows, force_constant=cv.force_constant
        ),
        r_squared=float(1 - ((found - wanted) ** 2).mean() / wanted.var(correction=0)),
        rank_correlation=float(spearmanr(found.numpy(), wanted.numpy()).statistic),
    )


def _runs_in_openmm(module: nn.Module) -> bool:
    return (
        isinstance(module, MLP)
        and module.activation == "tanh"
        and len(module.sizes) == 3
        and module.sizes[1] <= OPENMM_UNITS
    )


def _weighted_distances(
    features: PairDistances, weights: torch.Tensor, means: torch.Tensor | None = None
) -> openmm.CustomBondForce:
    """Return Σ w (r − mean) over the pairs."""
    force = openmm.CustomBondForce("weight*(r-mean)")
    force.addPerBondParameter("weight")
    force.addPerBondParameter("mean")
    offsets = torch.zeros_like(weights) if means is None else means
    for pair, weight, mean in zip(features.pairs, weights.tolist(), offsets.tolist(), strict=True):
        force.addBond(*pair, [weight, mean])
    return force


class _Evaluator:
    """What a PythonForce calls: the value as an energy, and minus its gradient; warns once when off the data."""

    def __init__(self, name: str, module: nn.Module, features: Features) -> None:
        self.name, self.module, self.features, self.warned = name, module, features, False
        self.matrix = features.matrix()
        self.minus_transpose = np.ascontiguousarray(-self.matrix.T)

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        rows = self.matrix @ state.getPositions(asNumpy=True)._value
        features = self.features.of_rows(rows)
        value, gradient = self._value_and_gradient(features)
        if gradient is not None:
            return value, self.minus_transpose @ self.features.pull_back(rows, features, gradient)
        if not self.warned:
            self.warned = True
            warnings.warn(_off_message(self.name, "a simulation"), OffSupportWarning, 2)
        return value, np.zeros((self.matrix.shape[1], 3))

    def _value_and_gradient(self, features: np.ndarray) -> tuple[float, np.ndarray | None]:
        if isinstance(self.module, DiffusionCoordinate):
            return self.module.value_and_gradient(features)
        leaf = torch.tensor(features[None], requires_grad=True)
        value = self.module(leaf).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient[0].numpy()


def _off_message(name: str, where: str) -> str:
    return f"CV '{name}' is off the data it was learned from in {where}: held constant there, it does not bias"
