"""What recipes share: a plan's layers by the names of their modules, and what a tool can say of them."""

from dataclasses import dataclass

from mixbit.core import InvalidInput, Plan, Scheme

#: Ranges of inputs: of calibration data, or taken at run time for the tensor, for each row, or for groups of a row.
STATIC, TENSOR, ROW, ROW_ZERO, GROUP = "static", "tensor", "row", "row, zero point", "group"
_RANGES = {
    STATIC: "from calibration data", TENSOR: "at run time (d)", ROW: "at run time for each row (dr)",
    ROW_ZERO: "at run time for each row, with a zero point (drz)",
    GROUP: "at run time in groups (dg32)",
}  # fmt: skip
_SCALES = {"channel": "an output channel", "tensor": "a weight (t)", "group": "a group (g32)"}


@dataclass(frozen=True)
class Layer:
    """A layer of a plan.

    Attributes:
        name: Of its weight: `conv1.weight`.
        module: Of the module whose parameter `weight` it is: `conv1`; "" where it is another parameter, as
            `in_proj_weight`, which only layers in float may be.
        scheme: What it takes.
    """

    name: str
    module: str
    scheme: Scheme


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What a tool's file can say of a layer.

    Attributes:
        name: As its makers write it.
        weight_bits: Widths of weights.
        input_bits: Widths of inputs.
        scales: What shares a scale of weights: `channel`, `tensor`, `group`.
        ranges: Where ranges of inputs come from, of STATIC, TENSOR, ROW, ROW_ZERO and GROUP.
        zero_points: Whether weights may have zero points.
        floats: Types of floating-point weights.
        choices: Schemes that it takes, to search again with.
    """

    name: str
    weight_bits: tuple[int, ...]
    input_bits: tuple[int, ...]
    scales: tuple[str, ...]
    ranges: tuple[str, ...]
    zero_points: bool = False
    floats: tuple[str, ...] = ()
    choices: str = "w4a8,w8a8"

    def lacks(self, scheme: Scheme) -> str | None:
        """What of the scheme the tool's file cannot say, for people; None where nothing."""
        weight, read = scheme.weight, scheme.input
        if weight is None or weight.floating in self.floats:
            return None
        if weight.floating:
            return f"weights in {weight.floating} are not among its types"
        ranges = " or ".join(_RANGES[each] for each in self.ranges)
        scales = " or ".join(_SCALES[each] for each in self.scales)
        reasons = {
            f"zeros at fixed places (@{weight.sparsity}) are not among what it asks for": weight.sparsity is not None,
            f"weights have {_listed(self.weight_bits)} bits there": weight.bits not in self.weight_bits,
            f"a scale there is for {scales}": weight.granularity not in self.scales,
            "weights have no zero points there": not (weight.symmetric or self.zero_points),
            f"inputs have {_listed(self.input_bits)} bits there": read and read.bits not in self.input_bits,
            f"ranges of inputs there come {ranges}": read and range_of(scheme) not in self.ranges,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def refusal(self, layer: str, scheme: Scheme, reason: str, way_out: str | None = None) -> InvalidInput:
        """The error that says why the tool's file cannot hold the layer, and the way out: other choices by default."""
        instead = way_out or f"search again with --choices {self.choices}, or edit the plan"
        return InvalidInput(f"layer {layer}: {self.name} does not take {scheme}: {reason}; {instead}")

    def layers(self, plan: Plan) -> list[Layer]:
        """The plan's layers in its order; raises InvalidInput for the first that the tool's file cannot hold."""
        layers = []
        for name in plan.layers:
            scheme = plan.scheme(name)
            module, _, parameter = name.rpartition(".")
            module = module if parameter == "weight" else ""
            if scheme.weight is not None and not module:
                reason = "it names modules, and this weight is not the parameter `weight` of one"
                raise self.refusal(name, scheme, reason, f"search again with --pin '{name}=float'")
            if not name.isprintable():
                raise InvalidInput(f"layer {name!r}: the name has characters that are not printed; rename it")
            if (reason := self.lacks(scheme)) is not None:
                raise self.refusal(name, scheme, reason)
            layers.append(Layer(name, module, scheme))
        return layers

    def named(self, plan: Plan) -> list[Layer]:
        """Those of `layers` that have a module; the others are in float, and the tool would not quantize them."""
        return [layer for layer in self.layers(plan) if layer.module]


def range_of(scheme: Scheme) -> str | None:
    """Where the range of the input comes from: STATIC, TENSOR, ROW, ROW_ZERO or GROUP; None in float."""
    if scheme.input is None:
        return None
    if not scheme.input.dynamic:
        return STATIC
    return ROW_ZERO if scheme.input.granularity == ROW and not scheme.input.symmetric else scheme.input.granularity


def _listed(widths: tuple[int, ...]) -> str:
    return " or ".join(filter(None, [", ".join(map(str, widths[:-1])), str(widths[-1])]))
