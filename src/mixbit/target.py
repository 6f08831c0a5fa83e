"""Targets: what a runtime can store and execute; the file of each under `targets/` also writes and runs."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from mixbit.errors import InvalidInput
from mixbit.scheme import Format, Scheme

#: Target -> the module that holds its TARGET, write(), load() and stored().
TARGETS = {
    "onnxruntime": "mixbit.targets.onnxruntime",
    "openvino": "mixbit.targets.openvino",
    "packed": "mixbit.targets.packed",
}

#: Offered where nothing else is asked for: the widths that every target stores, executed in int8.
DEFAULT_CHOICES = ("w2a8", "w3a8", "w4a8", "w6a8", "w8a8")

#: What becomes of a feature that a target does not have, where that needs saying.
WITHOUT = {"sparsity": " (its file would hold the zeros too and be no smaller)"}


@dataclass(frozen=True)
class Target:
    """What a runtime stores and executes.

    Attributes:
        name: As in `--target`.
        artefact: Name of the file that it loads.
        files: Names of all the files that hold the network.
        weight_bits: Widths it stores.
        input_bits: Widths of layer inputs it executes.
        default_choices: The schemes offered when none are asked for.
        integer_operators: Kinds of operators between layers (`add`, `cat`, `average_pool`, `matmul`) that run in
            integers when their inputs are quantized.
        adds_into_layers: Whether an addition runs inside a convolution that feeds it and nothing else, whose output
            then is never rounded.
        weight_bytes: (shape, axis, format) -> bytes in the file for that weight and its scales.
        note: What happens to each width when the file is loaded, for people.
        quantized_outputs: Whether a convolution runs in integers only where its output is quantized too.
        features: What it stores and executes beyond one symmetric scale a channel and static ranges: of `one scale`,
            `group`, `zero point`, `float16`, `bfloat16`, `sparsity`, `dynamic` and `dynamic rows`.
    """

    name: str
    artefact: str
    files: tuple[str, ...]
    weight_bits: tuple[int, ...]
    input_bits: tuple[int, ...]
    default_choices: tuple[str, ...]
    integer_operators: frozenset[str]
    adds_into_layers: bool
    weight_bytes: Callable[[tuple[int, ...], int, Format | None], int]
    note: str
    quantized_outputs: bool = False
    features: frozenset[str] = frozenset()

    def offers(self, scheme: Scheme) -> bool:
        """Whether the target stores and executes layers of that scheme."""
        weight = scheme.weight is None or scheme.weight.floating or scheme.weight.bits in self.weight_bits
        read = scheme.input is None or scheme.input.bits in self.input_bits
        return bool(weight) and read and scheme.features <= self.features

    def schemes(self, choices: Sequence[str] | None) -> tuple[Scheme, ...]:
        """The choices as schemes, its own default ones where none are given; each must be offered and stand once."""
        texts = tuple(choices) if choices is not None else self.default_choices
        if not texts or len(set(texts)) != len(texts):
            raise InvalidInput(f"choices {list(texts)}: give one scheme or more, each once")
        schemes = tuple(Scheme.parse(text) for text in texts)
        for scheme in schemes:
            if not self.offers(scheme):
                widths = ", ".join(f"w{bits}" for bits in self.weight_bits)
                inputs = ", ".join(f"a{bits}" for bits in self.input_bits)
                missing = "".join(
                    f", no {word}{WITHOUT.get(word, '')}" for word in sorted(scheme.features - self.features)
                )
                raise InvalidInput(
                    f"choice {scheme}: target {self.name} does not run it; weights {widths}, inputs {inputs} or float"
                    f"{missing}"
                )
        return schemes


@dataclass(frozen=True)
class StoredWeight:
    """How the artefact holds one layer's weight: bytes with scales, and in which types."""

    weight_bytes: int
    types: str


@dataclass(frozen=True)
class Runner:
    """An artefact, loaded by its runtime.

    Attributes:
        run: (one array per graph input) -> one array per output.
        executed: () -> layer -> operator and precision that the runtime chose, read from the runtime.
        environment: The runtime's name and version, and its settings.
    """

    run: Callable[[list[NDArray[Any]]], list[NDArray[Any]]]
    executed: Callable[[], dict[str, str]]
    environment: dict[str, str]


def find_target(target: str | Target) -> Target:
    """The target of that name, or the target itself."""
    if isinstance(target, Target):
        return target
    return target_module(target).TARGET


def target_module(name: str) -> Any:
    """The module under `targets/` of that name."""
    if name not in TARGETS:
        raise InvalidInput(f"target {name!r} is unknown; known: {', '.join(TARGETS)}")
    return importlib.import_module(TARGETS[name])
