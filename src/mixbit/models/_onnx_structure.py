"""Branches and loops of an ONNX file, where no data decides them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.models._onnx_builder import Builder, Stored
from mixbit.models._onnx_numbers import is_number, one

#: Most rounds of a Loop.
MOST_ROUNDS = 128
#: (builder, graph) -> the values that the graph returns.
Run = Callable[[Builder, Any], list[Any]]


def branch(builder: Builder, node: Any, attributes: dict[str, Any], run: Run) -> None:
    """The branch that the condition, which is no data, takes."""
    condition = builder.values[node.input[0]]
    if isinstance(condition, Stored):
        condition = builder.tensors[condition.name].tolist()
    taken = builder.known[condition] if isinstance(condition, fx.Node) else [condition]
    if any(isinstance(each, Tensor) for each in taken):
        raise ValueError("values of the data decide which way it goes; export one of both ways")
    if len({bool(one(each)) for each in taken}) != 1:
        raise ValueError("which way it goes depends on the number of samples; export one of both ways")
    made = run(builder, attributes["then_branch" if one(taken[0]) else "else_branch"])
    builder.keep(node, made)


def loop(builder: Builder, node: Any, body: Any, run: Run) -> None:
    """The rounds one after the other."""
    rounds, condition = (builder.values[name] if name else None for name in (*node.input[:2], "")[:2])
    carried = [builder.values[name] for name in node.input[2:]]
    if rounds is None or not is_number(rounds) or not (condition is None or is_number(condition)):
        raise ValueError("how often it runs depends on a size or on data; export it for a fixed number of rounds")
    if one(rounds) > MOST_ROUNDS:
        raise ValueError(f"{one(rounds)} rounds would be that many copies of what is inside; at most {MOST_ROUNDS}")
    scanned: list[list[Any]] = []
    for number in range(one(rounds) if condition is None or one(condition) else 0):
        names = [value.name for value in body.input]
        builder.values.update(zip(names, [number, True, *carried], strict=True))
        goes_on, *made = run(builder, body)
        if not is_number(goes_on) or not one(goes_on):
            raise ValueError("whether it goes on depends on data, or it stops early; export a fixed number of rounds")
        carried = made[: len(carried)]
        scanned.append([_argument(builder, value) for value in made[len(carried) :]])
    stacked = [builder.call(_stacked, parts, {}) for parts in zip(*scanned, strict=True)]
    builder.keep(node, [*carried, *stacked])


def _argument(builder: Builder, value: Any) -> Any:
    return builder.stored(value, None, 0) if isinstance(value, Stored) else value


def _stacked(*parts: Any) -> Tensor:
    return torch.stack([torch.as_tensor(part) for part in parts])
