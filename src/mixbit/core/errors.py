"""The errors mixbit raises on purpose; each says what, where, the value, and the way out."""

from collections.abc import Collection
from difflib import get_close_matches


class MixbitError(Exception):
    """Base of every error that mixbit raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 2


class InvalidInput(MixbitError):
    """An argument, a file, a batch or a model cannot be used as given."""


class UnsupportedModel(MixbitError):
    """The model cannot be captured: the message names the line of the user's code and what to do."""


class InfeasibleBudget(MixbitError):
    """No plan keeps within every limit.

    Attributes:
        reachable: For each limited resource, the smallest and largest use over all plans, in its own unit.
        binding: Indices of the layers that hold most of the resource even at their cheapest choice.
    """

    exit_code = 3

    def __init__(
        self, message: str, *, reachable: tuple[tuple[float, float], ...] = (), binding: tuple[int, ...] = ()
    ) -> None:
        super().__init__(message)
        self.reachable = reachable
        self.binding = binding


class TargetMismatch(MixbitError):
    """The artefact does not do, weigh or hold what was promised."""

    exit_code = 4


def pick(kind: str, name: str, known: Collection[str], otherwise: str = "") -> str:
    """The name; raises InvalidInput where it is not among the known ones."""
    if not isinstance(name, str) or name not in known:
        near = did_you_mean(name, known)
        raise InvalidInput(f"{kind} {name!r} is unknown{near}; known: {', '.join(known)}{otherwise}")
    return name


def did_you_mean(name: object, known: Collection[object]) -> str:
    """` (did you mean fisher?)`, for the known name that is most alike; empty where none is."""
    by_text = {str(each).lower(): str(each) for each in known}
    near = get_close_matches(name.lower(), by_text, 1) if isinstance(name, str) else ()
    return f" (did you mean {by_text[near[0]]}?)" if near else ""
