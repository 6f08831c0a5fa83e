"""Random plans: over all choices, or near a budget (arrays only)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixbit.core import Budget, InvalidInput, Limit, Sensitivity

#: [L] the column of each layer's scheme.
Choice = NDArray[np.int64]

#: Share of the budget by which the usage of a plan near it may differ from it.
NEAR = 0.05
#: How often to start again where no move comes closer.
MOST_STARTS = 100
#: A move that comes closer by a smaller share does so by rounding alone, and could be taken back and forth for ever.
ROUNDING = 1e-9


def draw_choices(table: Sensitivity, number: int, near: Budget | None, seed: int) -> dict[str, list[Choice]]:
    """Set (`random`, and `near` where a budget is given) -> its random plans.

    Args:
        table: One that offers every choice.
        number: How many plans of each set.
        near: A budget of one limit; the usage of the plans of the second set is within NEAR of it.
        seed: Plan i of a set is always the same, for any number of plans.

    Raises:
        InvalidInput: fewer than three plans, a budget of several limits, or one that no plan comes near.
    """
    if number < 3:
        raise InvalidInput(f"{number} plans: a ranking needs at least 3, better 100")
    if near is not None and len(near.limits) != 1:
        raise InvalidInput(f"near budget {near}: give one limit")
    bits = [scheme.input_bits for scheme in table.schemes]
    rngs = [[np.random.default_rng([seed, of_set, plan]) for plan in range(number)] for of_set in range(2)]
    drawn = {"random": [random_choice(len(table.layers), bits, table.input_ties, rng) for rng in rngs[0]]}
    if near is not None:
        (limit,) = table.limits(near)
        drawn["near"] = [near_choice(limit, bits, table.input_ties, rng) for rng in rngs[1]]
    return drawn


def random_choice(
    num_layers: int, input_bits: Sequence[int], input_ties: Sequence[Sequence[int]], rng: np.random.Generator
) -> Choice:
    """A choice [L], each layer's uniform over the C choices and independent of the others, but where they are tied.

    Of tied layers, which read the same tensor, the input format is drawn first, uniformly over the formats offered;
    then the choice of each, uniformly over the choices with that format.

    Args:
        num_layers: L.
        input_bits: [C] bits of the input under each choice.
        input_ties: Groups of layers that take the same input bits.
        rng: Of the draws.
    """
    bits = np.asarray(input_bits)
    choice = rng.integers(len(bits), size=num_layers)
    for tie in input_ties:
        columns = np.flatnonzero(bits == rng.choice(np.unique(bits)))
        choice[list(tie)] = rng.choice(columns, size=len(tie))
    return choice


def near_choice(
    limit: Limit, input_bits: Sequence[int], input_ties: Sequence[Sequence[int]], rng: np.random.Generator
) -> Choice:
    """A choice [L] whose usage differs from the limit's bound by at most NEAR of it.

    From a random one, single layers are moved to other choices, each move drawn uniformly among those that come
    closer to the bound and obey the ties, until it is near; where no move comes closer, from another random one.

    Args:
        limit: Usage [L, C] and bound.
        input_bits: As for `random_choice`.
        input_ties: As for `random_choice`.
        rng: Of the draws.

    Raises:
        InvalidInput: MOST_STARTS times no move came closer.
    """
    usage, bits = limit.usage, np.asarray(input_bits)
    tied = np.zeros(len(usage), dtype=bool)
    tied[[layer for tie in input_ties for layer in tie]] = True
    for _ in range(MOST_STARTS):
        choice = random_choice(len(usage), input_bits, input_ties, rng)
        while True:
            now = np.take_along_axis(usage, choice[:, None], axis=1)
            total = float(now.sum())
            if abs(total - limit.bound) <= NEAR * limit.bound:
                return choice
            allowed = ~tied[:, None] | (bits == bits[choice][:, None])
            distance = abs(total + (usage - now) - limit.bound)
            moves = np.argwhere(allowed & (distance < abs(total - limit.bound) * (1 - ROUNDING)))
            if not len(moves):
                break
            layer, column = rng.choice(moves)
            choice[layer] = column
    low, high = usage.min(axis=1).sum(), usage.max(axis=1).sum()
    raise InvalidInput(
        f"near budget {limit.name}={limit.bound:g}: found no plan within {NEAR:.0%} of it; "
        f"the choices reach {low:g} to {high:g}"
    )
