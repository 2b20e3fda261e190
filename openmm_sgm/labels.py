"""The space of labels that a generator is conditioned on: smooth features of a point in CV space."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

__all__ = ["LabelSpace"]

LABEL_ORDER = 3
"""Total order of the Fourier and Chebyshev products in which label-dependent means are expanded."""


@dataclass(frozen=True)
class LabelSpace:
    """The space of labels: smooth features of a point in CV space.

    Attributes
    ----------
    periods : per CV, its period or None
    minimum, maximum : per CV, the bounds that non-periodic CVs are scaled with
    thermal : whether the last of them is no CV but ln(T/T₀), with T the label's temperature and T₀ the target's
    """

    periods: tuple[float | None, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    thermal: bool = False

    def spread(self, labels: torch.Tensor) -> torch.Tensor:
        """Return √(T/T₀), shape (n, 1): how much wider than at the target a harmonic coordinate is; 1 without T."""
        if not self.thermal:
            return torch.ones_like(labels[:, :1])
        return torch.exp(0.5 * labels[:, -1:])

    def difference(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return a − b, shape (n, d), wrapped into [−period/2, period/2) for periodic CVs."""
        columns = []
        for column, period in zip((a - b).T, self.periods, strict=True):
            if period is not None:
                column = torch.remainder(column + period / 2, period) - period / 2
                column = torch.where(column >= period / 2, -period / 2, column)  # rounding reaches the open end
            columns.append(column)
        return torch.stack(columns, dim=1)

    def features(self, labels: torch.Tensor, order: int = LABEL_ORDER) -> torch.Tensor:
        """Return products of per-CV bases up to total `order`, the constant first; labels (n, d) -> (n, n_features)."""
        bases: list[list[tuple[int, torch.Tensor]]] = []
        for k, period in enumerate(self.periods):
            one = torch.ones_like(labels[:, k])
            terms = [(0, one)]
            if period is not None:
                angle = labels[:, k] * (2 * math.pi / period)
                for m in range(1, order + 1):
                    terms += [(m, torch.cos(m * angle)), (m, torch.sin(m * angle))]
            else:
                u = 2 * (labels[:, k] - self.minimum[k]) / (self.maximum[k] - self.minimum[k]) - 1
                chebyshev = [one, u]
                for _ in range(2, order + 1):
                    chebyshev.append(2 * u * chebyshev[-1] - chebyshev[-2])
                terms += [(m, chebyshev[m]) for m in range(1, order + 1)]
            bases.append(terms)
        columns = []
        for combination in itertools.product(*bases):
            if sum(degree for degree, _ in combination) <= order:
                columns.append(math.prod((term for _, term in combination[1:]), start=combination[0][1]))
        return torch.stack(columns, dim=1)
