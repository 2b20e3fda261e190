"""The score network's exact trace against automatic differentiation, and what a fresh network gives."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from openmm_sgm.networks import Conditioning, NetworkOptions, ScoreNetwork, TraceOperators

N = 6
LABEL_FEATURES = 5
SMALL = NetworkOptions(width=12, hidden=17, conditioning=8)
SIZES = {
    "linear only": (5, 0, SMALL),
    "one coordinate": (1, 0, SMALL),
    "one rotor": (4, 1, SMALL),
    "two rotors": (7, 2, SMALL),
    "more rotors than the rest": (1, 4, SMALL),
    "wider than deep": (6, 2, NetworkOptions(width=32, hidden=8, conditioning=4)),
    "narrower than the coordinates": (11, 3, NetworkOptions(width=4, hidden=3, conditioning=2)),
    "of one": (3, 1, NetworkOptions(width=1, hidden=1, conditioning=1)),
}
WITH_ROTORS = [name for name, (_, rotors, _) in SIZES.items() if rotors]


def network_of(name: str) -> ScoreNetwork:
    """Return a network in double precision whose weights are all random, the output's too."""
    n_linear, n_rotors, options = SIZES[name]
    torch.manual_seed(list(SIZES).index(name))
    network = ScoreNetwork(n_linear, n_rotors, LABEL_FEATURES, options).double().requires_grad_(False)
    for parameter in network.parameters():
        # of order one per layer, so that each term of the trace counts
        parameter.copy_(torch.randn_like(parameter) * 1.5 / math.sqrt(parameter.shape[-1]))
    return network


def inputs_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return linear coordinates (N, n_linear) and rotor angles (N, n_rotors), the latter all round the circle."""
    n_linear, n_rotors, _ = SIZES[name]
    rng = np.random.default_rng(11)
    angles = rng.uniform(-math.pi, math.pi, size=(N, n_rotors))
    return torch.as_tensor(rng.normal(size=(N, n_linear))), torch.as_tensor(angles)


def conditioning_of(network: ScoreNetwork, rows: int = N) -> Conditioning:
    rng = np.random.default_rng(12)
    log_sigma = torch.as_tensor(rng.uniform(-4, 2.5, size=rows))
    return network.conditioning(log_sigma, torch.as_tensor(rng.normal(size=(rows, LABEL_FEATURES))))


def jacobian_traces(
    network: ScoreNetwork, linear: torch.Tensor, rotors: torch.Tensor, c: Conditioning
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two traces, each (N,), from whole Jacobians by automatic differentiation."""

    def one(x: torch.Tensor, angles: torch.Tensor, *condition: torch.Tensor) -> torch.Tensor:
        rows = Conditioning(*(part[None] for part in condition))
        return network(x[None], angles[None], rows)[0]

    jacobian: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch.func.jacrev(one, argnums=(0, 1))
    by_linear, by_rotor = torch.func.vmap(jacobian)(linear, rotors, *c)
    split = network.n_linear
    return (
        torch.diagonal(by_linear[:, :split], dim1=1, dim2=2).sum(-1),
        torch.diagonal(by_rotor[:, split:], dim1=1, dim2=2).sum(-1),
    )


def trace_errors(
    name: str, change: Callable[[TraceOperators], TraceOperators] = lambda ops: ops
) -> tuple[float, float]:
    """Return the largest error of the two traces, with operators that a test may have spoilt."""
    network = network_of(name)
    linear, rotors = inputs_of(name)
    c = conditioning_of(network)
    expected = jacobian_traces(network, linear, rotors, c)
    _, *found = network.forward_and_trace(linear, rotors, c, change(network.trace_operators()))
    errors = [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]
    return errors[0], errors[1]


# The exact divergence


@pytest.mark.parametrize("name", SIZES)
def test_value_is_that_of_forward(name: str) -> None:
    network = network_of(name)
    linear, rotors = inputs_of(name)
    c = conditioning_of(network)
    value, trace, rotor_trace = network.forward_and_trace(linear, rotors, c, network.trace_operators())
    assert value.shape == (N, network.n_linear + network.n_rotors)
    assert trace.shape == rotor_trace.shape == (N,)
    assert value.abs().max() > 0.1
    torch.testing.assert_close(value, network(linear, rotors, c), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SIZES)
def test_trace_is_that_of_the_jacobian(name: str) -> None:
    assert max(trace_errors(name)) < 1e-11


def test_jacobian_of_the_check_is_that_of_finite_differences() -> None:
    network = network_of("two rotors")
    linear, rotors = inputs_of("two rotors")
    c = conditioning_of(network)
    z, step = torch.cat([linear, rotors], dim=1), 1e-5
    columns = []
    for k in range(z.shape[1]):
        direction = torch.eye(9, dtype=torch.float64)[k]
        ends = [(z + sign * step * direction).split([7, 2], dim=1) for sign in (1, -1)]
        up, down = (network(a, b, c)[:, k] for a, b in ends)
        columns.append((up - down) / (2 * step))
    trace, rotor_trace = jacobian_traces(network, linear, rotors, c)
    torch.testing.assert_close(sum(columns[:7]), trace, rtol=0, atol=1e-7)
    torch.testing.assert_close(sum(columns[7:]), rotor_trace, rtol=0, atol=1e-7)


@pytest.mark.parametrize("spoil", ["dropped", "off by a hundredth"])
@pytest.mark.parametrize("field", TraceOperators._fields)
def test_a_term_that_is_wrong_is_noticed(field: str, spoil: str) -> None:
    """The comparison above fails when any one operator is left out or slightly off."""
    factor = 0.0 if spoil == "dropped" else 1.01

    def change(ops: TraceOperators) -> TraceOperators:
        return ops._replace(**{field: factor * getattr(ops, field)})

    for name in WITH_ROTORS:
        linear_error, rotor_error = trace_errors(name, change)
        linear_field = field in ("constant", "first", "second", "both")
        assert (linear_error if linear_field else rotor_error) > 1e-5
        assert (rotor_error if linear_field else linear_error) < 1e-11


@pytest.mark.parametrize("field", ["first", "both", "a2b1"])
def test_operators_of_other_weights_are_noticed(field: str) -> None:
    other = network_of("two rotors")
    other.a2.weight.mul_(1.1)
    other.b1.weight.mul_(1.1)
    stale = getattr(other.trace_operators(), field)
    assert max(trace_errors("two rotors", lambda ops: ops._replace(**{field: stale}))) > 1e-3


def test_trace_in_single_precision() -> None:
    network = network_of("two rotors")
    linear, rotors = inputs_of("two rotors")
    expected = network.forward_and_trace(linear, rotors, conditioning_of(network), network.trace_operators())
    c = Conditioning(*(part.float() for part in conditioning_of(network)))
    single = network.float()
    found = single.forward_and_trace(linear.float(), rotors.float(), c, single.trace_operators())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WITH_ROTORS)
def test_rotors_are_on_a_circle(name: str) -> None:
    network = network_of(name)
    linear, rotors = inputs_of(name)
    c, ops = conditioning_of(network), network.trace_operators()
    turned = rotors + 2 * math.pi * torch.arange(1, network.n_rotors + 1, dtype=torch.float64)
    before, after = (network.forward_and_trace(linear, angles, c, ops) for angles in (rotors, turned))
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    assert (network(linear, rotors + 0.1, c) - before[0]).abs().max() > 1e-3


# Conditioning


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ["one rotor", "more rotors than the rest", "narrower than the coordinates"])
def test_conditioning_shapes(name: str, rows: int) -> None:
    network = network_of(name)
    c = conditioning_of(network, rows)
    width, hidden, dimension = network.options.width, network.options.hidden, network.n_linear + network.n_rotors
    assert {field: tuple(getattr(c, field).shape) for field in c._fields} == {
        "stream": (rows, width),
        "shift1": (rows, hidden),
        "gain1": (rows, hidden),
        "shift2": (rows, hidden),
        "gain2": (rows, hidden),
        "bias": (rows, dimension),
    }


def test_one_row_of_conditioning_serves_many_samples() -> None:
    network = network_of("two rotors")
    linear, rotors = inputs_of("two rotors")
    one = conditioning_of(network, rows=1)
    many = Conditioning(*(part.expand(N, -1) for part in one))
    ops = network.trace_operators()
    torch.testing.assert_close(network(linear, rotors, one), network(linear, rotors, many), rtol=0, atol=1e-13)
    results = (network.forward_and_trace(linear, rotors, c, ops) for c in (one, many))
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_every_part_of_the_conditioning_counts() -> None:
    network = network_of("two rotors")
    linear, rotors = inputs_of("two rotors")
    c = conditioning_of(network)
    value = network(linear, rotors, c)
    for field in Conditioning._fields:
        other = c._replace(**{field: getattr(c, field) + 0.1})
        assert (network(linear, rotors, other) - value).abs().max() > 1e-3, field


def test_conditioning_depends_on_noise_level_and_label() -> None:
    network = network_of("one rotor")
    sigma, label = torch.zeros(1, dtype=torch.float64), torch.zeros(1, LABEL_FEATURES, dtype=torch.float64)
    here = network.conditioning(sigma, label)
    for other in (network.conditioning(sigma + 0.5, label), network.conditioning(sigma, label + 0.5)):
        for a, b in zip(here, other, strict=True):
            assert (a - b).abs().max() > 1e-4


def test_gains_are_one_and_shifts_zero_where_the_heads_say_nothing() -> None:
    network = network_of("one rotor")
    network.heads.weight.zero_()
    network.heads.bias.zero_()
    for field, part in zip(Conditioning._fields, conditioning_of(network), strict=True):
        np.testing.assert_array_equal(part, 1.0 if field.startswith("gain") else 0.0, err_msg=field)


# A fresh network


@pytest.mark.parametrize("name", SIZES)
def test_output_is_zero_at_first(name: str) -> None:
    n_linear, n_rotors, options = SIZES[name]
    torch.manual_seed(1)
    network = ScoreNetwork(n_linear, n_rotors, LABEL_FEATURES, options).double()
    linear, rotors = inputs_of(name)
    c = conditioning_of(network)
    np.testing.assert_array_equal(c.bias.detach(), np.zeros((N, n_linear + n_rotors)))
    np.testing.assert_array_equal(network(linear, rotors, c).detach(), np.zeros((N, n_linear + n_rotors)))
    value, *traces = network.forward_and_trace(linear, rotors, c, network.trace_operators())
    assert not value.any()
    assert not torch.stack(traces).any()


def test_a_fresh_network_can_learn() -> None:
    """Where the output is zero the gradient is not: of the output weights and the bias first, then of the rest."""
    torch.manual_seed(2)
    network = ScoreNetwork(4, 1, LABEL_FEATURES, SMALL).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    linear, rotors = inputs_of("one rotor")
    losses = []
    for _ in range(30):
        target = torch.cat([linear, rotors], dim=1)
        loss = ((network(linear, rotors, conditioning_of(network)) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name


def test_options_are_plain_numbers() -> None:
    options = NetworkOptions(width=10, hidden=20, conditioning=30)
    assert options.to_dict() == {"width": 10, "hidden": 20, "conditioning": 30}
    assert NetworkOptions(**options.to_dict()) == options
