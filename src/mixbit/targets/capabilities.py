"""capabilities(): what each operator does on a target in each scheme, from what the target says of itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from torch import nn

from mixbit.core import Format, Scheme, Target, checked, find_target
from mixbit.graph import Layer, Operation
from mixbit.graph.layers import OPERATOR_KINDS, PRODUCTS
from mixbit.quantization.offers import RANGED_AT_RUN_TIME

#: Kinds of layers' operators, in the order of the tables; `linear` stands for `addmm` and `matmul` too.
OPERATORS = tuple(kind.name for kind in OPERATOR_KINDS.values() if kind.name not in PRODUCTS)
#: One scheme of each form, and of each width where the form is the usual one.
SCHEMES = (
    *(f"w{bits}a8" for bits in range(2, 9)), "w4a4", "w8a16", "w8ta8", "w4g32a8", "w8za8", "w8a8@50%", "w8a8@2:4",
    "w4a8d", "w8a8d", "w8a8dr", "w8a8drz", "w8a8dg32", "w4g32a8dg32",
    *(f"w{bits}" for bits in range(2, 9)), "w8t", "w4g32", "w8z", "w4g32z", "float16", "bfloat16", "float",
)  # fmt: skip
#: Of `summary`.
COLUMNS = ("scheme", "bits a weight", "a scale for each", "in integers", "in float", "refused")
#: Rows and columns of the matrix whose bytes tell the bits a weight: so many that those of scales a channel round away.
_SIZE = 4096


@dataclass(frozen=True)
class Capability:
    """What a target does with one kind of layers in one scheme.

    Attributes:
        operator: Kind of the layer's operator.
        scheme: As in `--choices`.
        runs: In which numbers the runtime computes it, or "refused".
        stored_bits: Of one weight of a large layer in the file, with its share of the scales; None where it is refused,
            or where they depend on the numbers or on the operator.
        granularity: What shares a scale of the weight: "tensor", "channel" or "group of 32"; "" for floats.
        reason: Why it is refused; "" where it is not.
    """

    operator: str
    scheme: str
    runs: Literal["integers", "float", "refused"]
    stored_bits: float | None
    granularity: str
    reason: str = ""


@checked
def capabilities(target: str) -> tuple[Capability, ...]:
    """A row for each of SCHEMES and each of OPERATORS, scheme by scheme.

    Raises:
        InvalidInput: an unknown target.
    """
    one = find_target(target)
    return tuple(_capability(one, operator, text) for text in SCHEMES for operator in OPERATORS)


def _capability(target: Target, operator: str, text: str) -> Capability:
    scheme = Scheme.parse(text)
    granularity = _granularity(scheme.weight)
    if (reason := _why_not(target, operator, scheme)) is not None:
        return Capability(operator, text, "refused", None, granularity, reason)
    layer, bits = _layer(operator), None
    if target.layer_bytes is not None:
        bits = round(8 * target.layer_bytes(layer, scheme) / layer.numel, 1)
    elif target.coded_bytes is None:
        bits = round(8 * target.weight_bytes(layer.shape, 0, scheme.weight) / layer.numel, 1)
    in_integers = scheme.input is not None and operator in target.integer_layers
    return Capability(operator, text, "integers" if in_integers else "float", bits, granularity)


def _why_not(target: Target, operator: str, scheme: Scheme) -> str | None:
    if (reason := target.refuses(scheme)) is not None:
        return reason.removeprefix(f"target {target.name} does not run it; ")
    if operator in target.missing_layers:
        return "no such operator"
    if (reason := target.lacks_for(_layer(operator), scheme)) is not None:
        return reason
    at_run_time = scheme.input is not None and scheme.input.dynamic
    if at_run_time and operator not in (*RANGED_AT_RUN_TIME, "embedding"):  # tables take the weight's format alone
        return f"its ranges are static; it takes {scheme.fallbacks[-1]} beside this"
    return None


@cache
def _layer(operator: str) -> Layer:
    """A large layer of that kind, whose weight a module of torch's holds, as `nn.ConvTranspose2d`."""
    (kind,) = (kind for kind in OPERATOR_KINDS.values() if kind.name == operator)
    module = getattr(nn, "".join(word.capitalize() for word in operator.split("_")))
    shape = (_SIZE, _SIZE, *[1] * (_dimensions(operator) - 2))
    read = None if kind.input is None else "x"
    operation = Operation(operator, kind, read, macs=0, groups=1, takes_bias=True)
    return Layer(operator, shape, 0, (operation,), (f"{module.__module__}.{module.__qualname__}",))


def _dimensions(operator: str) -> int:
    """Of the operator's weight: conv2d has four."""
    return int(operator[-2]) + 2 if operator.startswith("conv") else 2


def _granularity(fmt: Format | None) -> str:
    if fmt is None or fmt.floating is not None:
        return ""
    return f"group of {fmt.group}" if fmt.group is not None else fmt.granularity


def summary(rows: Sequence[Capability]) -> list[tuple[str, ...]]:
    """COLUMNS of the rows of one target; schemes that differ in nothing else share a line, and operators a reason."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for scheme in dict.fromkeys(row.scheme for row in rows):
        some = [row for row in rows if row.scheme == scheme]
        bits = " or ".join(dict.fromkeys(f"{row.stored_bits:g}" for row in some if row.stored_bits is not None))
        reasons = dict.fromkeys(row.reason for row in some if row.reason)
        refused = (f"{_named(row for row in some if row.reason == reason)}: {reason}" for reason in reasons)
        ran = (_named(row for row in some if row.runs == numbers) for numbers in ("integers", "float"))
        lines.setdefault((bits, some[0].granularity, *ran, "; ".join(refused)), []).append(scheme)
    return [(", ".join(schemes), *line) for line, schemes in lines.items()]


def between_layers(target: str) -> str:
    """The operators between layers whose inputs the target rounds as layers' inputs, a sentence for people."""
    kinds = sorted(find_target(target).integer_operators)
    return f"Operators between layers on inputs of 8 bits: {', '.join(kinds) or 'none'}."


def _named(rows: Iterable[Capability]) -> str:
    operators = [row.operator for row in rows]
    return "all" if len(operators) == len(OPERATORS) else ", ".join(operators)
