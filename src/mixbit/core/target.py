"""Targets: what a runtime can store and execute; the file of each under `targets/` also writes and runs."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from mixbit.core.errors import InvalidInput
from mixbit.core.io.methods import pick
from mixbit.core.scheme import Format, Scheme

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
            `group`, `zero point`, `float16`, `bfloat16`, `sparsity`, `dynamic`, `dynamic rows` and `dynamic groups`.
        not_beside_static: Of `features`, those of weights that it does not execute with an input of static range.
        not_beside_dynamic: Of `features`, those of weights that it does not execute with an input ranged at run time.
        dynamic_group: Values of a row that share a range taken at run time; any number where None.
        dynamic_choices: The schemes offered where ranges are to be taken at run time and none are asked for.
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
    not_beside_static: frozenset[str] = frozenset()
    not_beside_dynamic: frozenset[str] = frozenset()
    dynamic_group: int | None = None
    dynamic_choices: tuple[str, ...] = ()

    def offers(self, scheme: Scheme) -> bool:
        """Whether the target stores and executes layers of that scheme."""
        weight = scheme.weight is None or scheme.weight.floating or scheme.weight.bits in self.weight_bits
        read = scheme.input is None or scheme.input.bits in self.input_bits
        return bool(weight) and read and not self.missing(scheme)

    def missing(self, scheme: Scheme) -> list[str]:
        """Features of the scheme that the target does not have, or not beside such an input, for people."""
        absent, read = sorted(scheme.features - self.features), scheme.input
        lacks = [f"no {word}{WITHOUT.get(word, '')}" for word in absent]
        if not absent and "sparsity" in scheme.features:
            lacks += [f"{word} not beside zeros" for word in sorted(scheme.features & {"group", "zero point"})]
        if read is not None:
            apart, kind = self.not_beside_static, "of static range"
            if read.dynamic:
                apart, kind = self.not_beside_dynamic, "ranged at run time"
            lacks += [f"{word} not beside inputs {kind}" for word in sorted(scheme.features & apart)]
            if read.group is not None and self.dynamic_group not in (None, read.group):
                lacks.append(f"inputs in groups of {self.dynamic_group}")
        return lacks

    def schemes(self, choices: Sequence[str] | None) -> tuple[Scheme, ...]:
        """The choices as schemes, its own default ones where none are given; each must be offered and stand once.

        Where one takes the range of its input at run time, none takes it in another way.
        """
        texts = tuple(choices) if choices is not None else self.default_choices
        if not texts or len(set(texts)) != len(texts):
            raise InvalidInput(f"choices {list(texts)}: give one scheme or more, each once")
        schemes = tuple(Scheme.parse(text) for text in texts)
        for scheme in schemes:
            if not self.offers(scheme):
                widths = ", ".join(f"w{bits}" for bits in self.weight_bits)
                inputs = ", ".join(f"a{bits}" for bits in self.input_bits)
                missing = "".join(f", {text}" for text in self.missing(scheme))
                raise InvalidInput(
                    f"choice {scheme}: target {self.name} does not run it; weights {widths}, inputs {inputs} or float"
                    f"{missing}"
                )
        read = list(dict.fromkeys(scheme.input for scheme in schemes if scheme.input is not None))
        if len(read) > 1 and any(fmt.dynamic for fmt in read):
            kinds = [str(next(scheme for scheme in schemes if scheme.input == fmt)) for fmt in read]
            raise InvalidInput(
                f"choices {', '.join(kinds)}: a plan takes all ranges at run time, in one way, or none; offer one kind"
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
    return importlib.import_module(TARGETS[pick("target", name, TARGETS)])
