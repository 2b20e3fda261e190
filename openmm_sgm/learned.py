"""Learned CVs: a function of distances or coordinates, from a diffusion map, TICA or a network, that biases OpenMM."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .cvs import CollectiveVariable
from .diffusion_maps import SUPPORT_FACTOR, DiffusionMap, support_of
from .features import Features, PairDistances
from .units import InputError, one_line

__all__ = [
    "MLP",
    "DiffusionCoordinate",
    "LinearProjection",
    "OffSupportWarning",
    "TorchCV",
    "diffusion_cv",
    "tica_component",
]

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "silu": nn.SiLU, "softplus": nn.Softplus}
OFF_MARGIN = 0.1
"""Off the data a diffusion coordinate is held this fraction of its range below the range."""


class OffSupportWarning(UserWarning):
    """A learned CV was asked about configurations unlike those it was learned from, and does not bias them."""


# Functions of features


class LinearProjection(nn.Module):
    """(f − mean) · vector, such as a TICA component; mean and vector float64, shape (d,)."""

    mean: torch.Tensor
    vector: torch.Tensor

    def __init__(self, mean: Any, vector: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(np.array(mean, dtype=np.float64)))
        self.register_buffer("vector", torch.as_tensor(np.array(vector, dtype=np.float64)))
        if self.vector.ndim != 1 or self.mean.shape != self.vector.shape:
            raise InputError(f"mean and vector must be of one length, got {self.mean.shape} and {self.vector.shape}")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) @ self.vector

    def description(self) -> dict[str, Any]:
        return {"mean": [0.0] * len(self.mean), "vector": [0.0] * len(self.vector)}


class MLP(nn.Module):
    """A multilayer perceptron in float64, `sizes` from the number of features to 1; smooth activations only."""

    def __init__(self, sizes: Sequence[int], activation: str = "tanh") -> None:
        super().__init__()
        self.sizes, self.activation = [int(size) for size in sizes], activation
        if len(self.sizes) < 2 or min(self.sizes) < 1 or self.sizes[-1] != 1:
            raise InputError(f"sizes run from the number of features to 1, got {list(sizes)}")
        if activation not in ACTIVATIONS:
            raise InputError(f"the activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        layers = [(nn.Linear(n, m), ACTIVATIONS[activation]()) for n, m in pairwise(self.sizes)]
        self.layers = nn.Sequential(*list(chain.from_iterable(layers))[:-1]).double()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)[:, 0]

    def description(self) -> dict[str, Any]:
        return {"sizes": self.sizes, "activation": self.activation}


class DiffusionCoordinate(nn.Module):
    """One coordinate of a `DiffusionMap`, held at `off_value` off the data: off + s(q) (ψ − off).

    The support s is `DiffusionMap.support`: where it is 0 the function is constant, exactly, and its gradient 0.
    """

    def __init__(self, diffusion_map: DiffusionMap, coordinate: int, off_value: float) -> None:
        super().__init__()
        n = diffusion_map.eigenvectors.shape[1]
        if not 0 <= coordinate < n:
            raise InputError(f"the map has coordinates 0 to {n - 1}, got {coordinate}")
        self.map, self.coordinate, self.off_value = diffusion_map, coordinate, float(off_value)
        x, epsilon = diffusion_map.landmarks, diffusion_map.bandwidth
        c = diffusion_map.coefficients
        psi = diffusion_map.eigenvectors[:, coordinate] / diffusion_map.eigenvalues[coordinate]
        # k(f, x_j) = exp(a_j · (f, f·f, 1)), and the three sums over landmarks that value and support are made of.
        self._half_rate = 1 / (2 * epsilon)
        self._exponents = np.column_stack(
            [x / (2 * epsilon), np.full(len(x), -1 / (4 * epsilon)), -(x**2).sum(axis=1) / (4 * epsilon)]
        )
        self._scaled = np.ascontiguousarray(self._exponents[:, :-2])
        self._terms = np.stack([np.ones_like(c), c, c * psi], axis=1)
        self._floor = SUPPORT_FACTOR * diffusion_map.threshold
        self._width = -math.log(SUPPORT_FACTOR)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        s, psi = self.support(features), self.map.extend(features)[:, self.coordinate]
        return self.off_value + torch.where(s > 0, s * (psi - self.off_value), 0.0)

    def support(self, features: torch.Tensor) -> torch.Tensor:
        """Return s, shape (n,)."""
        return support_of(torch.exp(-self.map.exponents(features)).sum(dim=1), self.map.threshold)

    def value_and_gradient(self, features: np.ndarray) -> tuple[float, np.ndarray | None]:
        """Return the value and ∂/∂features (d,) in closed form, which costs a third of automatic differentiation.

        The gradient is None off the data.
        """
        augmented = np.empty(len(features) + 2)
        augmented[:-2], augmented[-2], augmented[-1] = features, features @ features, 1.0
        kernel = np.exp(self._exponents @ augmented)
        q, denominator, numerator = (kernel @ self._terms).tolist()
        if q <= self._floor:
            return self.off_value, None
        psi = numerator / denominator
        above = psi - self.off_value
        t = min(math.log(q / self._floor) / self._width, 1.0)
        s, slope = t * t * (3 - 2 * t), 6 * t * (1 - t) / (self._width * q)
        # The derivatives by the three sums, then through the kernel.
        by_sum = np.array([above * slope, -s * psi / denominator, s / denominator])
        kernel *= self._terms @ by_sum
        gradient = kernel @ self._scaled
        gradient -= features * (self._half_rate * float(kernel.sum()))
        return self.off_value + s * above, gradient

    def description(self) -> dict[str, Any]:
        return {"coordinate": self.coordinate, "off_value": self.off_value}


MODULES: dict[str, type[Any]] = {kind.__name__: kind for kind in (LinearProjection, MLP, DiffusionCoordinate)}
"""What `TorchCV.save` can describe: the one place where a name in a file becomes a class."""


# The collective variable


class TorchCV(CollectiveVariable):
    """A CV that is a torch module of features of the positions; dimensionless.

    OpenMM runs it as a `PythonForce` (OpenMM 8.4 or later), at the cost of a call of Python each step; a
    `LinearProjection` of pair distances becomes an OpenMM force of its own. The umbrella is that of every CV.

    A system that holds a PythonForce is serialised with a pickle of this module's classes inside the XML, which passes
    between the processes of a run in memory. `save` writes no pickle, and what another process deserialises must be
    able to import `openmm_sgm` and the class of the module.

    >>> features = PairDistances(itertools.combinations(heavy_atoms, 2))
    >>> found = fit_diffusion_map(cv_features, n_coordinates=2, max_landmarks=300)
    >>> cv = diffusion_cv("psi1", found, 0, features)
    >>> cv.save(folder)

    Parameters
    ----------
    module : float64 (n, d) to (n,) or (n, 1), smooth, each row for itself, and in its evaluation mode. If it has a
        method `support`, (n, d) to (n,) in [0, 1], it must be constant where that is 0, and an `OffSupportWarning`
        says of how many frames that is so
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
            probe = module(torch.ones((1, features.n_features), dtype=torch.float64))
            fits = probe.numel() == 1 and probe.dtype == torch.float64
        except RuntimeError as error:
            raise InputError(f"CV '{name}': the module fails on float64 features: {one_line(error)}") from None
        if not fits:
            raise InputError(f"CV '{name}': the module must return one float64 number for each row of features")
        self.module: Any = module
        self.features = features

    def force(self) -> openmm.Force:
        if isinstance(self.module, LinearProjection) and isinstance(self.features, PairDistances):
            return self._linear_force(self.features.pairs)
        if not hasattr(openmm, "PythonForce"):
            raise InputError(f"CV '{self.name}' needs OpenMM 8.4 or later, which has PythonForce")
        force = openmm.PythonForce(_Evaluator(self.name, self.module, self.features), {})
        force.setParticles(self.atoms)
        return force

    def _linear_force(self, pairs: Iterable[tuple[int, int]]) -> openmm.Force:
        force = openmm.CustomBondForce("weight*(r-mean)")
        force.addPerBondParameter("weight")
        force.addPerBondParameter("mean")
        numbers = zip(self.module.vector.tolist(), self.module.mean.tolist(), strict=True)
        for pair, (weight, mean) in zip(pairs, numbers, strict=True):
            force.addBond(*pair, [weight, mean])
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
        """Return the CV that `save` wrote."""
        folder = Path(folder)
        try:
            data = json.loads((folder / "cv.json").read_text(encoding="utf-8"))
            arrays = load_file(folder / "cv.safetensors")
        except FileNotFoundError as error:
            raise InputError(f"{folder} holds no learned CV: {error.filename} is missing") from None
        description = data.pop("module")
        kind = MODULES[description.pop("kind")]
        if kind is DiffusionCoordinate:
            found = DiffusionMap.from_arrays({name: value.numpy() for name, value in arrays.items()})
            module = DiffusionCoordinate(found, **description)
        else:
            module = kind(**description)
            module.load_state_dict(arrays)
        features = Features.from_dict(data.pop("features"))
        return cls(module=module, features=features, **data)


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

    Off the data the CV is held at a value below its range, `OFF_MARGIN` of the range away. Its frames then fall in no
    bin, an umbrella's energy there is constant and its force zero, and the step up to it at the edge of the data
    keeps a simulation from leaving them to escape its umbrella. It remains a function of the configuration, so that
    reweighting stays exact; the step itself lies where the kernel density falls from the landmarks' 1 % quantile to a
    hundredth of that.
    """
    if not 0 <= coordinate < diffusion_map.eigenvectors.shape[1]:
        raise InputError(f"the map has {diffusion_map.eigenvectors.shape[1]} coordinates, counted from 0")
    psi = diffusion_map.eigenvectors[:, coordinate]
    low = float(psi.min()) if minimum is None else float(minimum)
    high = float(psi.max()) if maximum is None else float(maximum)
    module = DiffusionCoordinate(diffusion_map, coordinate, low - OFF_MARGIN * (high - low))
    return TorchCV(name, module, features, low, high, windows=windows, force_constant=force_constant)


def tica_component(trajectories: Iterable[np.ndarray], lag: int, component: int = 0) -> LinearProjection:
    """Return a TICA component (Pérez-Hernández et al., J. Chem. Phys. 139, 015102, 2013) by deeptime, extra `tica`.

    trajectories : features of each trajectory, (n_frames, d); lag in frames; component 0 is the slowest
    """
    try:
        from deeptime.decomposition import TICA
    except ImportError:
        raise InputError('TICA needs deeptime: install "openmm-sgm[tica]"') from None
    data = [np.asarray(trajectory, dtype=np.float64) for trajectory in trajectories]
    model = TICA(lagtime=lag, dim=component + 1).fit(data).fetch_model()
    return LinearProjection(model.mean_0, model.singular_vectors_left[:, component])


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
