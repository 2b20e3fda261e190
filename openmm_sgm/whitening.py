"""Coordinates that a score model finds easy: centred on a smooth function of the label and whitened together."""

from __future__ import annotations

import torch

__all__ = ["fit_whitening"]

RIDGE_ROWS = 20.0
"""Rows of data that the penalty on a feature's coefficient counts as."""


def fit_whitening(
    raw: torch.Tensor, features: torch.Tensor, spread: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return coefficients (n_features, d), mixing and unmixing (d, d): raw = features @ coefficients + z @ mixing.

    Ridge regression on the label's features, each coordinate in units of its own spread; then the symmetric root of the
    residuals' covariance, shrunk towards its diagonal as if d further rows had been uncorrelated.

    Parameters
    ----------
    raw : float64, shape (n, d); features : shape (n, n_features), the constant first
    spread : shape (n, d), widths known beforehand that residuals are divided by; weights : shape (n,), sum 1
    """
    w = weights[:, None]
    grand_mean = (w * raw).sum(0)
    scale = torch.sqrt((w * (raw - grand_mean) ** 2).sum(0)).clamp(1e-6)
    target = (raw - grand_mean) / scale
    penalty = torch.full((features.shape[1],), RIDGE_ROWS / len(raw), dtype=torch.float64)
    penalty[0] = 0.0
    gram = features.T @ (w * features) + torch.diag(penalty) + 1e-10 * torch.eye(len(penalty))
    coefficients = torch.linalg.solve(gram, features.T @ (w * target)) * scale
    coefficients[0] += grand_mean
    residual = (raw - features @ coefficients) / spread / scale
    covariance = residual.T @ (w * residual)
    shrink = raw.shape[1] / (raw.shape[1] + len(raw))
    covariance = (1 - shrink) * covariance + shrink * torch.diag(torch.diagonal(covariance).clamp(1e-6))
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(1e-5)
    # the symmetric root changes little from fit to fit, so that a network can go on from its previous weights
    mixing = (vectors * torch.sqrt(values)) @ vectors.T * scale
    unmixing = ((vectors / torch.sqrt(values)) @ vectors.T) / scale[:, None]
    return coefficients, mixing, unmixing
