"""Mixtures of plans against scipy's linear programs."""

import numpy as np
import pytest

from mixbit.searches._problem import Problem, _relaxation
from mixbit.searches.mixtures import mixtures


def problem_of(rng, ties):
    """Seven layers, six choices of two input widths, some not offered, losses over six orders of magnitude."""
    loss = rng.random((7, 6)) * 10.0 ** -np.arange(6)
    offered = rng.random(loss.shape) > 0.2
    offered[:, 3] = True
    return Problem(
        layers=[str(row) for row in range(7)],
        loss=np.where(offered, loss, np.inf),
        budget=[],
        weight_bits=np.arange(6),
        input_bits=np.array([4, 8, 4, 8, 4, 8]),
        numel=np.ones(7),
        input_ties=ties,
    )


@pytest.mark.parametrize("ties", [(), ((0, 1, 4), (2, 3))], ids=["free", "tied"])
@pytest.mark.parametrize("seed", range(4))
def test_equal_the_linear_relaxation_of_every_table(ties, seed):
    rng = np.random.default_rng(seed)
    problem, usage = problem_of(rng, ties), np.cumsum(rng.random((7, 6)), axis=1)
    finite = np.where(problem.offered, problem.loss, 0)
    tables = finite * (1 + 0.3 * rng.standard_normal((3, 7, 6)))
    low, high = problem.smallest(usage), -problem.smallest(-usage)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        limit = low + share * (high - low)
        for table, mixture in zip(tables, mixtures(problem, tables, usage, share), strict=True):
            wanted = _relaxation(problem, table[problem.offered], usage[problem.offered][None], limit, problem.offered)
            np.testing.assert_allclose(mixture.sum(1), 1)
            assert (mixture[~problem.offered] == 0).all()
            assert (mixture * usage).sum() <= limit * (1 + 1e-6)
            assert (mixture * table).sum() == pytest.approx(wanted.fun, rel=1e-5, abs=1e-6)


def test_a_table_without_differences_takes_what_is_first():
    problem = problem_of(np.random.default_rng(0), ())
    usage = np.tile(np.arange(6.0), (7, 1))
    (mixture,) = mixtures(problem, np.zeros((1, 7, 6)), usage, 1.0)
    assert (mixture.argmax(1) == problem.offered.argmax(1)).all()
