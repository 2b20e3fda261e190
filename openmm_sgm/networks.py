"""Score networks: a raw `forward`, knowing nothing of the scalings of noise levels, and its exact divergence.

`ScoreNetwork` has two residual blocks on purpose. The trace of the Jacobian of two blocks h + B (d ∘ A h), with a
diagonal d per sample, is a bilinear form in the two diagonals,

    tr[W_out (I + B₂ D₂ A₂)(I + B₁ D₁ A₁) W_in]
        = tr P + d₁ · diag(A₁ P B₁) + d₂ · diag(A₂ P B₂) + d₂ᵀ [(A₂ B₁) ∘ (A₁ P B₂)ᵀ] d₁,    P = W_in W_out,

so the exact divergence costs about as much as the forward pass, whatever the dimension, where automatic
differentiation would cost one pass a dimension.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Conditioning", "NetworkOptions", "ScoreNetwork"]

ROTOR_HARMONICS = 3


@dataclass(frozen=True)
class NetworkOptions:
    """Size of a `ScoreNetwork`: width of the residual stream, of the blocks, and of the conditioning network."""

    width: int = 128
    hidden: int = 128
    conditioning: int = 96

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain numbers, for JSON."""
        return asdict(self)


class Conditioning(NamedTuple):
    """Everything that noise level and label set: shifts of the stream, shift and gain of each block, output bias."""

    stream: torch.Tensor
    shift1: torch.Tensor
    gain1: torch.Tensor
    shift2: torch.Tensor
    gain2: torch.Tensor
    bias: torch.Tensor


class ScoreNetwork(nn.Module):
    """F(z, σ, c): two residual blocks over the coordinates, shifted and gated by noise level and label.

    Parameters
    ----------
    n_linear, n_rotors : number of whitened coordinates and of rotors
    n_label_features : number of label features (`LabelSpace.features`)
    """

    def __init__(self, n_linear: int, n_rotors: int, n_label_features: int, options: NetworkOptions) -> None:
        super().__init__()
        self.n_linear, self.n_rotors, self.options = n_linear, n_rotors, options
        width, hidden, dimension = options.width, options.hidden, n_linear + n_rotors
        self.input = nn.Linear(n_linear, width, bias=False)
        self.rotor_input = nn.Parameter(torch.randn(n_rotors, 2 * ROTOR_HARMONICS, width) * 0.2)
        self.a1, self.b1 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.a2, self.b2 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.output = nn.Linear(width, dimension, bias=False)
        nn.init.zeros_(self.output.weight)
        inner = options.conditioning
        self.condition = nn.Sequential(
            nn.Linear(5 + n_label_features, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU()
        )
        self.heads = nn.Linear(inner, width + 4 * hidden + dimension)
        with torch.no_grad():
            self.heads.weight[-dimension:] = 0
            self.heads.bias[-dimension:] = 0

    def conditioning(self, log_sigma: torch.Tensor, label_features: torch.Tensor) -> Conditioning:
        """Return what noise level (n,) and label features (n, n_label_features) set; one row may serve many samples."""
        t = log_sigma[:, None] / 4
        inputs = torch.cat([t, torch.sin(2 * t), torch.cos(2 * t), torch.sin(4 * t), torch.cos(4 * t)], dim=1)
        heads = self.heads(self.condition(torch.cat([inputs, label_features], dim=1)))
        width, hidden = self.options.width, self.options.hidden
        sizes = [width, hidden, hidden, hidden, hidden, self.n_linear + self.n_rotors]
        stream, shift1, gain1, shift2, gain2, bias = heads.split(sizes, dim=1)
        return Conditioning(stream, shift1, 1 + gain1, shift2, 1 + gain2, bias)

    def forward(self, linear: torch.Tensor, rotors: torch.Tensor, c: Conditioning) -> torch.Tensor:
        """Return F, shape (n, n_linear + n_rotors), from scaled linear coordinates and rotor angles (rad)."""
        h = self.input(linear) + c.stream
        if self.n_rotors:
            features, _ = _harmonics(rotors)
            h = h + torch.einsum("nrf,rfw->nw", features, self.rotor_input)
        h = h + self.b1(c.gain1 * functional.silu(self.a1(h) + c.shift1))
        h = h + self.b2(c.gain2 * functional.silu(self.a2(h) + c.shift2))
        return self.output(h) + c.bias

    def trace_operators(self) -> TraceOperators:
        """Return the matrices of the exact divergence for the current weights."""
        with torch.no_grad():
            a1, b1, a2, b2 = self.a1.weight, self.b1.weight, self.a2.weight, self.b2.weight
            out = self.output.weight[: self.n_linear]
            rotor_out = self.output.weight[self.n_linear :]
            p = self.input.weight @ out
            a1p, a2p, a2b1 = a1 @ p, a2 @ p, a2 @ b1
            tangents = self.rotor_input.reshape(-1, self.options.width)
            shape = (self.n_rotors, 2 * ROTOR_HARMONICS, self.options.hidden)
            return TraceOperators(
                constant=torch.trace(p),
                first=(a1p * b1.T).sum(1),
                second=(a2p * b2.T).sum(1),
                both=(a2b1 * (a1p @ b2).T).T.contiguous(),
                a2b1=a2b1.T.contiguous(),
                rotor_direct=torch.einsum("rfw,rw->rf", self.rotor_input, rotor_out),
                rotor_first=(tangents @ a1.T).reshape(shape),
                rotor_second=(tangents @ a2.T).reshape(shape),
                out_first=rotor_out @ b1,
                out_second=rotor_out @ b2,
            )

    def forward_and_trace(
        self, linear: torch.Tensor, rotors: torch.Tensor, c: Conditioning, ops: TraceOperators
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return F (n, dimension), Σ ∂F_i/∂linear_i (n,) and Σ ∂F_r/∂rotor_r (n,), the latter per rad; exact."""
        h = self.input(linear) + c.stream
        if self.n_rotors:
            features, slopes = _harmonics(rotors)
            h = h + features.flatten(1) @ self.rotor_input.flatten(0, 1)
        value1, slope1 = _silu_and_slope(self.a1(h) + c.shift1)
        h = h + self.b1(c.gain1 * value1)
        value2, slope2 = _silu_and_slope(self.a2(h) + c.shift2)
        h = h + self.b2(c.gain2 * value2)
        d1, d2 = c.gain1 * slope1, c.gain2 * slope2
        trace = ops.constant + d1 @ ops.first + d2 @ ops.second + ((d1 @ ops.both) * d2).sum(1)
        rotor_trace = torch.zeros_like(trace)
        for r in range(self.n_rotors):
            s = slopes[:, r]
            u1, u2 = d1 * (s @ ops.rotor_first[r]), d2 * (s @ ops.rotor_second[r])
            rotor_trace += s @ ops.rotor_direct[r] + u1 @ ops.out_first[r]
            rotor_trace += (u2 + d2 * (u1 @ ops.a2b1)) @ ops.out_second[r]
        return self.output(h) + c.bias, trace, rotor_trace


class TraceOperators(NamedTuple):
    """What `forward_and_trace` needs of the weights; computed once a model."""

    constant: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    both: torch.Tensor
    a2b1: torch.Tensor
    rotor_direct: torch.Tensor
    rotor_first: torch.Tensor
    rotor_second: torch.Tensor
    out_first: torch.Tensor
    out_second: torch.Tensor


def _harmonics(rotors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of multiples of the angles (n, n_rotors, 6), and their derivatives per rad."""
    k = torch.arange(1, ROTOR_HARMONICS + 1, dtype=rotors.dtype, device=rotors.device)
    phase = rotors[:, :, None] * k
    cosine, sine = torch.cos(phase), torch.sin(phase)
    return torch.cat([cosine, sine], -1), torch.cat([-k * sine, k * cosine], -1)


def _silu_and_slope(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gate = torch.sigmoid(x)
    value = x * gate
    return value, gate + value * (1 - gate)
