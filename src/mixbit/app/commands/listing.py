"""`mixbit list`."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from mixbit.app.commands import options
from mixbit.app.printing import print_json, print_rows, say
from mixbit.core import pick

ADVICE = (
    "float16 where a GPU computes; w8a8 and narrower where a CPU does, which is faster than float in integers alone; "
    "w8a8d and the like for transformers without calibration data"
)
LISTS = ("targets", "metrics", "searches", "ranges", "roundings")


def list_(what: Annotated[str, typer.Argument(help=" | ".join(LISTS))], as_json: options.AsJson = False) -> None:
    """Name the targets, metrics, searches, ranges of activations or roundings."""
    pick("list", what, LISTS)
    rows = _targets() if what == "targets" else _methods(what)
    if as_json:
        print_json(dict(rows))
    else:
        print_rows(what, ("name", "what it does"), rows)
    if what == "targets":
        say(ADVICE)


def _targets() -> list[tuple[str, str]]:
    from mixbit.core import TARGETS, find_target

    rows = []
    for target in map(find_target, TARGETS):
        weights, inputs = (", ".join(map(str, bits)) for bits in (target.weight_bits, target.input_bits))
        rows.append((target.name, f"weights {weights} bits, inputs {inputs} or float: {target.note}"))
    return rows


def _methods(what: str) -> list[tuple[str, str]]:
    from mixbit.metrics import METRICS
    from mixbit.quantization.ranges import RANGES
    from mixbit.roundings import ROUNDINGS
    from mixbit.searches.search import SEARCHES

    known: dict[str, Mapping[str, Callable[..., Any]]]
    known = {"metrics": METRICS, "searches": SEARCHES, "ranges": RANGES, "roundings": ROUNDINGS}
    return [(name, (method.__doc__ or "").strip().splitlines()[0]) for name, method in known[what].items()]
