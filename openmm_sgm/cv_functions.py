"""Functions of features that a learned CV can be: a linear projection (TICA), a network, a diffusion coordinate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from .diffusion_maps import SUPPORT_FACTOR, DiffusionMap, support_of
from .units import InputError

__all__ = ["MLP", "DiffusionCoordinate", "LinearProjection", "tica_component"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "silu": nn.SiLU, "softplus": nn.Softplus}


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
        return {}

    @classmethod
    def build(cls, arrays: dict[str, torch.Tensor]) -> LinearProjection:
        return cls(arrays["mean"].numpy(), arrays["vector"].numpy())


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

    @classmethod
    def build(cls, arrays: dict[str, torch.Tensor], sizes: Sequence[int], activation: str) -> MLP:
        network = cls(sizes, activation)
        network.load_state_dict(arrays)
        return network


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
        """Return the value and ∂/∂features (d,) in closed form; the gradient is None off the data."""
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

    @classmethod
    def build(cls, arrays: dict[str, torch.Tensor], coordinate: int, off_value: float) -> DiffusionCoordinate:
        found = DiffusionMap.from_arrays({name: array.numpy() for name, array in arrays.items()})
        return cls(found, coordinate, off_value)


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


MODULES: dict[str, type[Any]] = {kind.__name__: kind for kind in (LinearProjection, MLP, DiffusionCoordinate)}
"""What `TorchCV.save` can describe: the one place where a name in a file becomes a class."""
