"""Functions that ONNX files spell out, put together again: SiLU, hard swish, Mish, and GELU in both its forms.

A layer and the function behind it are one to mixbit and to runtimes, as they are where the network comes from Python.
"""

import math
from typing import Any

from torch import fx

from mixbit.models import _onnx_elementwise as elementwise

_NEAR = 1e-3


def join_functions(graph: fx.Graph) -> None:
    """Put, in place, one function where several operators compute it."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not elementwise.Mul:
            continue
        numbers, factors = _factors(node)
        made = _gated(numbers, factors) or _gelu(numbers, factors)
        if made is not None:
            function, x, options = made
            with graph.inserting_before(node):
                new = graph.call_function(function, (x,), options)
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def _factors(node: fx.Node) -> tuple[float, list[fx.Node]]:
    """The numbers of a product, multiplied, and its other factors; products that it alone reads are taken apart."""
    number, factors = 1.0, list[fx.Node]()
    for part in node.args:
        single = _single(part)
        if single is not None:
            number *= single
        elif isinstance(part, fx.Node) and part.target is elementwise.Mul and len(part.users) == 1:
            inner, more = _factors(part)
            number, factors = number * inner, [*factors, *more]
        elif isinstance(part, fx.Node):
            factors.append(part)
        else:
            return 0.0, []
    return number, factors


def _single(value: Any) -> float | None:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int | float) else None


def _gated(number: float, factors: list[fx.Node]) -> tuple[Any, fx.Node, dict[str, Any]] | None:
    """X sigmoid(x), x hardsigmoid(x), or x tanh(softplus(x))."""
    if number != 1 or len(factors) != 2:
        return None
    for x, gate in (factors, factors[::-1]):
        if not gate.args:
            continue
        inside = gate.args[0]
        if gate.target is elementwise.Sigmoid and inside is x:
            return elementwise.Swish, x, {}
        if gate.target is elementwise.HardSigmoid and inside is x:
            alpha, beta = gate.kwargs.get("alpha", 0.2), gate.kwargs.get("beta", 0.5)
            if _near(alpha, 1 / 6) and _near(beta, 0.5):
                return elementwise.HardSwish, x, {}
        is_softplus = isinstance(inside, fx.Node) and inside.target is elementwise.Softplus and inside.args[0] is x
        if gate.target is elementwise.Tanh and is_softplus:
            return elementwise.Mish, x, {}
    return None


def _gelu(number: float, factors: list[fx.Node]) -> tuple[Any, fx.Node, dict[str, Any]] | None:
    """0.5 x (1 + erf(x / sqrt 2)), or 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    if not _near(number, 0.5) or len(factors) != 2:
        return None
    for x, gate in (factors, factors[::-1]):
        function = _beside(gate, 1.0)
        if function is None or not function.args:
            continue
        if function.target is elementwise.Erf and _scaled(function.args[0], x, math.sqrt(0.5)):
            return elementwise.Gelu, x, {}
        if function.target is elementwise.Tanh and _cubic(function.args[0], x):
            return elementwise.Gelu, x, {"approximate": "tanh"}
    return None


def _beside(node: Any, number: float) -> fx.Node | None:
    """What the node adds to that number."""
    if not isinstance(node, fx.Node) or node.target is not elementwise.Add:
        return None
    for one, other in (node.args, node.args[::-1]):
        single = _single(one)
        if single is not None and _near(single, number) and isinstance(other, fx.Node):
            return other
    return None


def _scaled(node: Any, x: fx.Node, factor: float) -> bool:
    """Whether the node is x times that factor."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is elementwise.Div:
        single = _single(node.args[1])
        return node.args[0] is x and single is not None and _near(single, 1 / factor)
    if node.target is not elementwise.Mul:
        return False
    number, factors = _factors(node)
    return factors == [x] and _near(number, factor)


def _cubic(node: Any, x: fx.Node) -> bool:
    """Whether the node is sqrt(2 / pi) (x + 0.044715 x^3)."""
    if not isinstance(node, fx.Node) or node.target is not elementwise.Mul:
        return False
    number, factors = _factors(node)
    if not _near(number, math.sqrt(2 / math.pi)) or len(factors) != 1 or factors[0].target is not elementwise.Add:
        return False
    parts = [part for part in factors[0].args if part is not x]
    if len(parts) != 1 or not isinstance(parts[0], fx.Node) or parts[0].target is not elementwise.Mul:
        return False
    number, cubed = _factors(parts[0])
    is_power = len(cubed) == 1 and cubed[0].target is elementwise.Pow and cubed[0].args[0] is x
    is_power = is_power and _single(cubed[0].args[1]) == 3
    return _near(number, 0.044715) and (is_power or cubed == [x, x, x])


def _near(a: Any, b: float) -> bool:
    return isinstance(a, int | float) and math.isclose(a, b, rel_tol=_NEAR)
