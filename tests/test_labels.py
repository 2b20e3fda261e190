"""Label features: their number and order, values computed by hand, and what a period does to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from openmm_sgm.labels import LABEL_ORDER, LabelSpace

TURN = 2 * math.pi
TORSION = LabelSpace((TURN,), (-math.pi,), (math.pi,))
DISTANCE = LabelSpace((None,), (0.2,), (0.6,))
SPACES = {
    "torsion": TORSION,
    "distance": DISTANCE,
    "two torsions": LabelSpace((TURN, TURN), (-math.pi,) * 2, (math.pi,) * 2),
    "torsion and distance": LabelSpace((TURN, None), (-math.pi, 0.2), (math.pi, 0.6)),
    "period of 3, two lines": LabelSpace((None, 3.0, None), (-1.0, -1.5, 5.0), (1.0, 1.5, 9.0)),
    "three torsions": LabelSpace((TURN,) * 3, (-math.pi,) * 3, (math.pi,) * 3),
}


def tensor(*rows: tuple[float, ...]) -> torch.Tensor:
    """Return labels, one row each, in double precision."""
    return torch.tensor(rows, dtype=torch.float64)


def random_labels(space: LabelSpace, n: int = 50, seed: int = 0) -> torch.Tensor:
    """Return labels uniform over the space's range, shape (n, d)."""
    low, high = np.array(space.minimum), np.array(space.maximum)
    return torch.as_tensor(np.random.default_rng(seed).uniform(low, high, size=(n, len(low))))


def column_count(space: LabelSpace, order: int) -> int:
    """Count products by a recursion: a period has two functions of each degree above 0, a line has one."""

    def count(k: int, left: int) -> int:
        if k == len(space.periods):
            return 1
        each = 1 if space.periods[k] is None else 2
        return sum((each if degree else 1) * count(k + 1, left - degree) for degree in range(left + 1))

    return count(0, order)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("name", SPACES)
def test_number_of_columns(name: str, order: int) -> None:
    space = SPACES[name]
    features = space.features(random_labels(space), order)
    assert features.shape == (50, column_count(space, order))
    assert features.dtype == torch.float64


def test_number_of_columns_at_the_default_order() -> None:
    assert LABEL_ORDER == 3
    counts = {name: space.features(random_labels(space)).shape[1] for name, space in SPACES.items()}
    # 1 + 2·3; 1 + 3; 1 + 4 + 8 + 12 by degree; the others by the same sums
    assert counts == {
        "torsion": 7,
        "distance": 4,
        "two torsions": 25,
        "torsion and distance": 16,
        "period of 3, two lines": 30,
        "three torsions": 63,
    }


@pytest.mark.parametrize("name", SPACES)
def test_the_constant_is_first_and_only_once(name: str) -> None:
    features = SPACES[name].features(random_labels(SPACES[name]))
    assert (features[:, 0] == 1).all()
    assert (features[:, 1:].std(dim=0) > 1e-3).all()
    assert torch.linalg.matrix_rank(SPACES[name].features(random_labels(SPACES[name], 400))) == features.shape[1]


@pytest.mark.parametrize("name", SPACES)
def test_features_have_the_period_of_their_cv(name: str) -> None:
    space = SPACES[name]
    labels = random_labels(space)
    features = space.features(labels)
    for k, period in enumerate(space.periods):
        moved = labels.clone()
        moved[:, k] += 2 * (period or 0.05)
        change = (space.features(moved) - features).abs().max()
        assert change < 1e-12 if period is not None else change > 1e-2


def test_fourier_basis_by_hand() -> None:
    root = math.sqrt(3) / 2
    expected = tensor(
        (1, 0.5, root, -0.5, root, -1, 0),  # cos and sin of 60°, 120° and 180°
        (1, 0, -1, -1, 0, 0, 1),  # of −90°, −180° and −270°
        (1, 1, 0, 1, 0, 1, 0),
    )
    features = TORSION.features(tensor((math.pi / 3,), (-math.pi / 2,), (0.0,)))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-14)
    third = LabelSpace((3.0,), (-1.5,), (1.5,)).features(tensor((0.5,), (-0.75,), (0.0,)))
    torch.testing.assert_close(third, expected, rtol=0, atol=1e-14)


def test_chebyshev_basis_by_hand() -> None:
    # u = −1, 0, ½, 1 on the range from 0.2 to 0.6
    features = DISTANCE.features(tensor((0.2,), (0.4,), (0.5,), (0.6,)))
    expected = tensor((1, -1, 1, -1), (1, 0, -1, 0), (1, 0.5, -0.5, -1), (1, 1, 1, 1))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-14)
    # T_m(cos t) = cos(m t), up to an order beyond the default
    t = torch.linspace(0.1, 3.0, 9, dtype=torch.float64)
    high = DISTANCE.features((0.4 + 0.2 * torch.cos(t))[:, None], order=6)
    torch.testing.assert_close(high, torch.cos(t[:, None] * torch.arange(7)), rtol=0, atol=1e-12)


def test_products_by_hand() -> None:
    # φ = 60° and u = ½: 1, u, T2, then cos φ and sin φ with 1 and u, then cos 2φ and sin 2φ
    features = SPACES["torsion and distance"].features(tensor((math.pi / 3, 0.5)), order=2)
    c, s = 0.5, math.sqrt(3) / 2
    expected = tensor((1, 0.5, -0.5, c, c * 0.5, s, s * 0.5, -0.5, s))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-14)


def test_single_precision_is_kept() -> None:
    labels = random_labels(SPACES["torsion and distance"])
    single = SPACES["torsion and distance"].features(labels.float())
    assert single.dtype == torch.float32
    double = SPACES["torsion and distance"].features(labels)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_difference_wraps_only_what_is_periodic() -> None:
    space = SPACES["torsion and distance"]
    a = tensor((3.0, 0.6), (-3.0, 0.2), (0.5, 9.0), (3.0 + 3 * TURN, 0.4))
    b = tensor((-3.0, 0.2), (3.0, 0.6), (0.2, 0.0), (-3.0 - TURN, 0.4))
    expected = tensor((6 - TURN, 0.4), (TURN - 6, -0.4), (0.3, 9.0), (6 - TURN, 0.0))
    torch.testing.assert_close(space.difference(a, b), expected, rtol=0, atol=1e-13)


def test_difference_is_the_short_way_round_a_circle() -> None:
    a, b = random_labels(SPACES["three torsions"], 500), random_labels(SPACES["three torsions"], 500, seed=1)
    d = SPACES["three torsions"].difference(a, b)
    assert d.shape == (500, 3)
    torch.testing.assert_close(torch.cos(d), torch.cos(a - b), rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.sin(d), torch.sin(a - b), rtol=0, atol=1e-13)
    assert ((d >= -math.pi) & (d < math.pi)).all()


@pytest.mark.parametrize("turns", [-2, -1, 0, 1, 2])
def test_half_a_period_counts_as_minus_half(turns: int) -> None:
    """The interval is [−period/2, period/2), also a rounding error away from its ends."""
    for half in (-math.pi, math.pi):
        exact = half + turns * TURN
        for value in (exact, np.nextafter(exact, -100.0), np.nextafter(exact, 100.0)):
            d = TORSION.difference(tensor((value,)), tensor((0.0,))).item()
            assert -math.pi <= d < math.pi, f"difference of {value!r} and 0"
