"""Diffusion maps: slow coordinates of a cloud of points, their smooth extension, and where the data support them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix, diags_array, identity
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from scipy.spatial import cKDTree

from .units import InputError

__all__ = ["DiffusionMap", "choose_bandwidth", "fit_diffusion_map"]

MAX_LANDMARKS = 4000
NEIGHBOUR = 7
SMALLEST_KERNEL = 1e-8
"""Pairs whose kernel is smaller are left out of the eigenproblem."""
KRYLOV = 60
TOLERANCE = 1e-10
SUPPORT_QUANTILE = 0.01
SUPPORT_FACTOR = 0.01
"""A point is on the data where the kernel density exceeds this quantile of the landmarks' own, and off the data where
it is below this factor times that."""


@dataclass(frozen=True, eq=False)
class DiffusionMap:
    """Eigenfunctions of a diffusion on the data, after Coifman and Lafon, Appl. Comput. Harmon. Anal. 21, 5 (2006).

    With the kernel k(x, y) = exp(−|x − y|²/4ε), the weighted density q(x) = Σ_j k(x, x_j) w_j and
    c_j = w_j q(x_j)^−α, the Markov matrix is P_ij = k(x_i, x_j) c_j / Σ_l k(x_i, x_l) c_l. As ε → 0, (P − 1)/ε
    tends to the generator Δ + (2 − 2α) ∇log p · ∇, p the density of the weighted points: the density drops out at
    α = 1, and α = ½ is overdamped Langevin dynamics in −kT log p. The factor q(x)^−α of the row cancels, so that an
    eigenfunction extends to any x (Nyström) as

        ψ(x) = Σ_j k(x, x_j) c_j ψ_j / (λ Σ_j k(x, x_j) c_j).

    >>> found = fit_diffusion_map(features, n_coordinates=2)
    >>> found.coordinates(new_features)  # shape (n, 2)
    >>> found.support(new_features)  # 1 on the data, 0 off them

    Attributes
    ----------
    landmarks : float64, shape (m, d); the points that carry the map
    weights : float64, shape (m,), mean 1
    bandwidth : ε, squared unit of the features
    alpha : the exponent of the density normalisation
    eigenvalues : float64, shape (n_coordinates,), largest first; the constant's, 1, is left out
    eigenvectors : float64, shape (m, n_coordinates); mean 0 and mean square 1 over the stationary distribution of P,
        and positive where largest
    density : float64, shape (m,), q at the landmarks
    threshold : `SUPPORT_QUANTILE` of Σ_{j≠i} k(x_i, x_j) over the landmarks, which a new point is held to
    """

    landmarks: np.ndarray
    weights: np.ndarray
    bandwidth: float
    alpha: float
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    density: np.ndarray
    threshold: float

    @property
    def rates(self) -> np.ndarray:
        """−log(λ)/ε, float64, shape (n_coordinates,): eigenvalues of minus the generator."""
        return -np.log(self.eigenvalues) / self.bandwidth

    @cached_property
    def coefficients(self) -> np.ndarray:
        """c_j of the class docstring, float64, shape (m,), scaled to a maximum of 1."""
        log_c = np.log(self.weights) - self.alpha * np.log(self.density)
        return np.exp(log_c - log_c.max())

    def coordinates(self, features: np.ndarray) -> np.ndarray:
        """Return ψ of features (n, d) by Nyström's formula, float64, shape (n, n_coordinates).

        Far from every landmark this is the value of the nearest, over λ; ask `support` first.
        """
        return self.extend(torch.as_tensor(np.asarray(features, dtype=np.float64))).numpy()

    def extend(self, features: torch.Tensor) -> torch.Tensor:
        """Return `coordinates` as a differentiable function: float64 (n, d) to (n, n_coordinates)."""
        logits = torch.as_tensor(np.log(self.coefficients)) - self.exponents(features)
        return logits.softmax(dim=1) @ torch.as_tensor(self.eigenvectors / self.eigenvalues)

    def support(self, features: np.ndarray) -> np.ndarray:
        """Return how far the data support features (n, d): float64, shape (n,), 1 on the data and 0 off them.

        Between them it is a smooth step in the logarithm of Σ_j k(x, x_j), from `threshold` down to `SUPPORT_FACTOR`
        times that. Weights play no part: what counts is where there were points.
        """
        exponents = self.exponents(torch.as_tensor(np.asarray(features, dtype=np.float64)))
        return support_of(torch.exp(-exponents).sum(dim=1), self.threshold).numpy()

    def exponents(self, features: torch.Tensor) -> torch.Tensor:
        """Return ``|x − x_j|²/4ε`` of features (n, d), differentiable, shape (n, m)."""
        d = self.landmarks.shape[1]
        if features.ndim != 2 or features.shape[1] != d:
            raise InputError(
                f"the map is of {d} features: give an array of shape (n, {d}), got {tuple(features.shape)}"
            )
        landmarks = torch.as_tensor(self.landmarks)
        # By the squares: |x − y| itself has no derivative where a point is a landmark.
        square = (features**2).sum(1)[:, None] + (landmarks**2).sum(1) - 2 * features @ landmarks.T
        return square.clamp(min=0) / (4 * self.bandwidth)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of the map as float64 arrays, for npz or safetensors."""
        return {field.name: np.atleast_1d(np.asarray(getattr(self, field.name))) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> DiffusionMap:
        """Return the map of `arrays`."""
        values: dict[str, Any] = {name: np.asarray(arrays[name], dtype=np.float64) for name in arrays}
        for name in ("bandwidth", "alpha", "threshold"):
            values[name] = float(values[name][0])
        return cls(**values)


def support_of(density: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return the step 3t² − 2t³ in t, the logarithm of density/threshold from log `SUPPORT_FACTOR` (0) to 0 (1)."""
    floor = SUPPORT_FACTOR * threshold
    t = (torch.log(density.clamp(min=floor) / floor) / -np.log(SUPPORT_FACTOR)).clamp(max=1)
    return t**2 * (3 - 2 * t)


def choose_bandwidth(features: np.ndarray) -> float:
    """Return ε, the median over points of the squared distance to the `NEIGHBOUR`-th nearest other point.

    The scale of Zelnik-Manor and Perona, Adv. Neural Inf. Process. Syst. 17, 1601 (2004), one for all points. The
    maximum of d log Σk/d log ε (Coifman et al., IEEE Trans. Image Process. 17, 1891, 2008) was tried: among the
    distances of a molecule it falls on the scale of the vibrations, and the first eigenfunctions single out outliers.

    features : float64, shape (n, d)
    """
    distances, _ = cKDTree(features).query(features, k=min(NEIGHBOUR + 1, len(features)))
    epsilon = float(np.median(distances[:, -1] ** 2))
    if epsilon == 0:
        raise InputError("most points have copies among the others: a diffusion map needs points that differ")
    return epsilon


def fit_diffusion_map(
    features: np.ndarray,
    *,
    n_coordinates: int,
    bandwidth: float | None = None,
    weights: np.ndarray | None = None,
    alpha: float = 1.0,
    max_landmarks: int = MAX_LANDMARKS,
    seed: int = 0,
) -> DiffusionMap:
    """Return the diffusion map of points; see `DiffusionMap` for what it is.

    Parameters
    ----------
    features : float64, shape (n, d), n > n_coordinates + 1
    n_coordinates : how many eigenfunctions, without the constant
    bandwidth : ε, squared unit of the features; by default `choose_bandwidth` of the landmarks
    weights : shape (n,), positive; importance weights of biased data, so that the density of the operator is that
        of the weighted points. With α = 1 no density is left in it, and they matter little
    alpha : 1 leaves the sampling density out, 0 leaves it in
    max_landmarks : of more points as many are drawn at random, each with its weight, and the others are not used
    seed : of these draws

    Raises
    ------
    InputError
        for points or weights that are not finite, weights that are not positive, too few points, a bandwidth so small
        that the points fall into pieces, or n_coordinates, alpha or max_landmarks that make no sense.
    """
    points = np.asarray(features, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise InputError(f"features must be a finite array of shape (n, d), got shape {points.shape}")
    given = np.ones(len(points)) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (len(points),) or not np.isfinite(given).all() or not (given > 0).all():
        raise InputError(f"weights must be positive and finite, one for each of the {len(points)} points")
    if n_coordinates < 1 or min(len(points), max_landmarks) <= n_coordinates + 1:
        raise InputError(f"{n_coordinates} coordinates need 1 or more and more than {n_coordinates + 1} points")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be between 0 and 1, got {alpha}")
    landmarks, chosen = _subsample(points, max_landmarks, seed)
    w = given[chosen] / given[chosen].mean()
    epsilon = choose_bandwidth(landmarks) if bandwidth is None else float(bandwidth)
    if not (np.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"the bandwidth must be positive and finite, got {bandwidth}")
    kernel = _kernel(landmarks, epsilon)
    pieces = connected_components(kernel, directed=False, return_labels=False)
    if pieces > 1:
        raise InputError(f"with a bandwidth of {epsilon:g} the points fall into {pieces} pieces: give a larger one")
    density = kernel @ w
    normalised = diags_array(density**-alpha) @ kernel @ diags_array(density**-alpha)
    degree = normalised @ w
    # P = D⁻¹ K W is similar to the symmetric D^−½ W^½ K W^½ D^−½, whose eigenvectors are (W D)^½ ψ.
    scale = diags_array(np.sqrt(w / degree))
    # A wide Krylov space: eigenvalues crowd below 1 where the bandwidth is small or barriers are high.
    k, ncv = n_coordinates + 1, min(len(w), 4 * n_coordinates + KRYLOV)
    values, vectors = eigsh(scale @ normalised @ scale, k=k, which="LA", ncv=ncv, v0=np.ones(len(w)), tol=TOLERANCE)
    order = np.argsort(values)[::-1][1:]
    stationary = w * degree / (w @ degree)
    psi = vectors[:, order] / np.sqrt(stationary)[:, None]
    psi *= np.sign(psi[np.abs(psi).argmax(axis=0), np.arange(n_coordinates)])
    own = np.asarray(kernel.sum(axis=1)).ravel() - 1
    return DiffusionMap(
        landmarks=landmarks,
        weights=w,
        bandwidth=epsilon,
        alpha=float(alpha),
        eigenvalues=values[order],
        eigenvectors=np.ascontiguousarray(psi),
        density=density,
        threshold=float(np.quantile(own, SUPPORT_QUANTILE)),
    )


def _kernel(points: np.ndarray, epsilon: float) -> Any:
    """Return exp(−|x_i − x_j|²/4ε) as a sparse (n, n) matrix of all entries above `SMALLEST_KERNEL`."""
    n, radius = len(points), np.sqrt(-4 * epsilon * np.log(SMALLEST_KERNEL))
    i, j = cKDTree(points).query_pairs(radius, output_type="ndarray").T
    entries = np.exp(-((points[i] - points[j]) ** 2).sum(axis=1) / (4 * epsilon))
    upper = coo_matrix((entries, (i, j)), shape=(n, n)).tocsr()
    return upper + upper.T + identity(n, format="csr")


def _subsample(points: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `most` of the points, and which they are, in order."""
    n = len(points)
    chosen = np.arange(n)
    if n > most:
        chosen = np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
    return points[chosen], chosen
