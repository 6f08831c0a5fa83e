"""The first of many things that is good enough, where nearly all after it are."""

from collections.abc import Callable

#: How many steps below the found place to look for others, since not all after the first are good enough.
PROBES = (2, 4, 8, 16, 32)


def first_enough(number: int, enough: Callable[[int], bool]) -> int | None:
    """A place that is good enough and whose predecessor is not; None where the last is not good enough.

    A binary search; then probes 2, 4, 8, 16 and 32 steps below the found place, and where one is good enough, a binary
    search below that, until none is. So about 2 log2(number) + 5 are asked about, each once.
    """
    known: dict[int, bool] = {}

    def good(index: int) -> bool:
        if index not in known:
            known[index] = enough(index)
        return known[index]

    found, below = number - 1, -1
    if not good(found):
        return None
    while True:
        while found - below > 1:
            middle = (found + below) // 2
            if good(middle):
                found = middle
            else:
                below = middle
        lower = next((found - step for step in PROBES if found >= step and good(found - step)), None)
        if lower is None:
            return found
        found, below = (
            lower,
            max((index for index, is_good in known.items() if index < lower and not is_good), default=-1),
        )
