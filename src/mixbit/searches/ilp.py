"""Exact search: a multiple-choice knapsack with several limits and ties, by integer programming.

    minimise    sum_l loss[l, c_l]
    subject to  sum_l usage[r, l, c_l] <= limits[r]      for every limit r
                input_bits[c_l] = input_bits[c_m]        for l, m in one input tie

Source: the integer linear program of HAWQ-V3 (Yao et al., ICML 2021), here with any number of choices and limits.
"""

from mixbit.core import method
from mixbit.searches._problem import Integers, Problem, optimum


@method(rank=1)
def ilp(problem: Problem) -> Integers:
    """The choice of every layer with the smallest summed loss within every limit: the proven optimum.

    Raises:
        InfeasibleBudget: if no choice keeps within the limits.
        MixbitError: if the solver stops without an answer.
    """
    return optimum(problem).choice
