"""The rounding of columns, against the plain loop that inverts a matrix for every column."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mixbit.quantization.affine import dequantize, quantize
from mixbit.quantization.statistics import inverse_factor
from mixbit.roundings import gptq


def compensated(weight, hessian, *given, mask=None, **options):
    return gptq.compensated(weight, gptq.factored(hessian, **options), *given, mask=mask)


def nearest(w: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int]) -> Tensor:
    return dequantize(quantize(w, scale, zero_point, None, *limits), scale, zero_point, None)


def slow(
    weight: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    limits: tuple[int, int],
    *,
    damping: float,
    by_activation: bool,
    kept: Tensor | None = None,
) -> Tensor:
    """Optimal brain quantization of [rows, columns] in a fixed order: the inverse of what is left, at every column."""
    diagonal = hessian.diagonal()
    alive = diagonal > 0
    damped = hessian + torch.diag(torch.where(alive, damping * diagonal[alive].mean(), 1.0))
    order = sorted(range(len(hessian)), key=lambda j: -float(diagonal[j])) if by_activation else range(len(hessian))
    left, w, found = list(order), weight.clone(), torch.empty_like(weight)
    while left:
        inverse = torch.linalg.inv(damped[left][:, left])
        j = left[0]
        q = nearest(w[:, j], scale[:, j], zero_point[:, j], limits)
        found[:, j] = q if kept is None else q * kept[:, j]
        step = (w[:, j] - found[:, j]) / inverse[0, 0]
        w[:, left] -= step[:, None] * inverse[0]
        left = left[1:]
    return found


def problem(rows: int, columns: int, seed: int, groups: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W, H, scales, zero points [G, rows, columns] and what is kept, all random; inputs are correlated."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(groups, 3 * columns, columns) @ normal(groups, columns, columns) + 0.3
    weight = normal(groups, rows, columns)
    scale = 0.3 + 0.5 * normal(groups, rows, columns).abs()
    zero_point = torch.randint(-2, 3, scale.shape, generator=generator).double()
    kept = torch.rand(scale.shape, generator=generator) > 0.4
    return weight, x.mT @ x, scale, zero_point, kept


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 10**6), st.booleans(), st.booleans(), st.integers(1, 3))
def test_equals_the_plain_loop(rows, columns, seed, by_activation, sparse, groups):
    weight, hessian, scale, zero_point, kept = problem(rows, columns, seed, groups)
    limits, options = (-4, 3), {"damping": 0.01, "by_activation": by_activation}
    found = compensated(weight, hessian, scale, zero_point, limits, mask=kept if sparse else None, **options)
    for g in range(groups):
        expected = slow(
            weight[g], hessian[g], scale[g], zero_point[g], limits, kept=kept[g] if sparse else None, **options
        )
        torch.testing.assert_close(found[g], expected, atol=1e-8, rtol=0)


def test_blocks_change_nothing(monkeypatch):
    given_ = problem(5, 37, 1)[:4]
    whole = compensated(*given_, (-8, 7), damping=0.01, by_activation=True)
    monkeypatch.setattr(gptq, "BLOCK", 5)
    torch.testing.assert_close(compensated(*given_, (-8, 7), damping=0.01, by_activation=True), whole)


@pytest.mark.parametrize("by_activation", [False, True])
def test_independent_inputs_give_the_nearest(by_activation):
    weight, _, scale, zero_point, _ = problem(6, 11, 2)
    diagonal = torch.diag(torch.rand(11, dtype=torch.float64) + 0.1)[None]
    found = compensated(weight, diagonal, scale, zero_point, (-4, 3), damping=0.01, by_activation=by_activation)
    assert torch.equal(found, nearest(weight, scale, zero_point, (-4, 3)))


def test_beats_the_nearest_on_its_objective():
    for seed in range(20):
        weight, hessian, scale, zero_point, _ = problem(8, 24, seed)
        scale[:] = 0.5
        errors = [
            compensated(weight, hessian, scale, zero_point, (-8, 7), damping=0.01, by_activation=True) - weight,
            nearest(weight, scale, zero_point, (-8, 7)) - weight,
        ]
        ours, theirs = (float(((error @ hessian) * error).sum()) for error in errors)
        assert ours < 0.7 * theirs, seed


def test_zeros_that_are_asked_for_are_made_up_for():
    ratios = []
    for seed in range(10):
        weight, hessian, scale, zero_point, kept = problem(8, 24, seed)
        scale[:] = 0.01
        options = {"damping": 1e-6, "by_activation": True, "mask": kept}
        found = compensated(weight, hessian, scale, zero_point, (-2000, 2000), **options)
        assert (found[~kept] == 0).all()
        errors = [found - weight, weight * kept - weight]
        ours, theirs = (float(((error @ hessian) * error).sum()) for error in errors)
        ratios.append(ours / theirs)
    assert sum(ratios) < 0.9 * len(ratios)


def test_a_dead_input_takes_the_nearest_and_disturbs_nobody():
    weight, hessian, scale, zero_point, _ = problem(4, 7, 4)
    alive = [0, 1, 2, 4, 5, 6]
    without = compensated(
        weight[:, :, alive],
        hessian[:, alive][:, :, alive],
        scale[:, :, alive],
        zero_point[:, :, alive],
        (-4, 3),
        damping=0.01,
        by_activation=True,
    )
    hessian[:, 3], hessian[:, :, 3] = 0, 0
    found = compensated(weight, hessian, scale, zero_point, (-4, 3), damping=0.01, by_activation=True)
    assert torch.equal(found[:, :, 3], nearest(weight, scale, zero_point, (-4, 3))[:, :, 3])
    torch.testing.assert_close(found[:, :, alive], without)


def test_nothing_but_dead_inputs_gives_the_nearest():
    weight, hessian, scale, zero_point, _ = problem(4, 7, 5)
    found = compensated(weight, 0 * hessian, scale, zero_point, (-4, 3), damping=0.0, by_activation=True)
    assert torch.equal(found, nearest(weight, scale, zero_point, (-4, 3)))


def test_damping_grows_where_inputs_repeat_and_nowhere_else():
    one = torch.ones(1, 6, 6, dtype=torch.float64)  # rank 1
    well = torch.eye(6, dtype=torch.float64)[None]
    factor = inverse_factor(torch.cat([one, well]), 0.0)
    assert factor.isfinite().all()
    torch.testing.assert_close(factor[1], well[0])
    inverse = torch.linalg.inv(factor[0].T @ factor[0])
    share = float(inverse[0, 0] - 1)
    assert 0 < share < 1e-3
    torch.testing.assert_close(inverse, one[0] + share * well[0], atol=1e-5, rtol=0)
