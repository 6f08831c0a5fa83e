"""Operators on a parameter that are no layers as they are, rewritten as some that are, which every target runs.

Products of a parameter that is no plain matrix on the right become linear operators and grouped convolutions, and
look-ups by index and in bags become embeddings.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from mixbit.graph.fold import constants
from mixbit.graph.graph import argument, inserted, is_parameter, num_uses, packet, sizes_of, tensor_of
from mixbit.graph.layers import TRANSPOSES, is_float, parameter_behind

_aten = torch.ops.aten

#: What makes a bag of its rows, by torch's number of the mode.
_OF_BAGS = (_aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default)
#: Operator -> positions of what is added, and of its two factors.
_OPERATORS = {
    _aten.linear: (2, 0, 1), _aten.matmul: (None, 0, 1), _aten.mm: (None, 0, 1), _aten.bmm: (None, 0, 1),
    _aten.mv: (None, 0, 1), _aten.addmm: (0, 1, 2), _aten.baddbmm: (0, 1, 2), _aten.addbmm: (0, 1, 2),
    _aten.addmv: (0, 1, 2),
}  # fmt: skip
#: Convolutions, by the number of dimensions behind their channels.
_CONVOLUTIONS = {1: _aten.conv1d.default, 2: _aten.conv2d.default, 3: _aten.conv3d.default}


@dataclass(frozen=True)
class _Product:
    """output[of_output] = sum x[of_x] w[of_w] + added, a letter for each dimension, as einsum has them.

    Attributes:
        node: The operator in whose place others come.
        x, w: The factor that depends on inputs, and the one that does not.
        added: Another tensor, or None.
    """

    node: fx.Node
    x: fx.Node
    w: fx.Node
    of_x: str
    of_w: str
    of_output: str
    added: fx.Node | None = None

    def do(self, target: Any, *args: Any) -> fx.Node:
        """A new operator before the node."""
        return inserted(self.node, target, *args)

    @property
    def sizes(self) -> dict[str, Any]:
        """Of all letters."""
        return dict(zip(self.of_x + self.of_w, (*sizes_of(self.x), *sizes_of(self.w)), strict=True))

    @property
    def experts(self) -> str:
        """Dimensions of both factors and the output: for each there is a matrix."""
        return "".join(letter for letter in self.of_w if letter in self.of_x and letter in self.of_output)

    @property
    def sums(self) -> str:
        """Dimensions that are summed over."""
        return "".join(letter for letter in self.of_w if letter in self.of_x and letter not in self.of_output)

    @property
    def outputs(self) -> str:
        """Dimensions of the weight alone."""
        return "".join(letter for letter in self.of_w if letter not in self.of_x)

    @property
    def rows(self) -> str:
        """Dimensions of x alone; one that depends on the batch comes first."""
        letters = [letter for letter in self.of_x if letter not in self.of_w]
        return "".join(sorted(letters, key=lambda letter: isinstance(self.sizes[letter], int)))

    def count(self, letters: str) -> int:
        """How many indices of the weight these dimensions have together."""
        return math.prod(self.sizes[letter] for letter in letters)

    @property
    def has_layer(self) -> bool:
        """Whether it multiplies by a matrix or several, and sums over nothing else."""
        letters = {*self.experts, *self.outputs, *self.rows}
        is_matrix = sum(self.sizes[letter] > 1 for letter in self.of_w) > 1 and self.count(self.sums) > 1
        fits = not self.experts or len(self.rows) <= 1 + max(_CONVOLUTIONS)
        return is_matrix and fits and letters == {*self.of_output} and is_float(self.x) and is_float(self.w)


@torch.no_grad()
def rewrite_products(module: fx.GraphModule) -> None:
    """Rewrite, in place, what multiplies by a constant of two dimensions or more and sums, where it is no layer as is.

    The weight becomes a matrix [outputs, sums] of a linear operator. Where experts or heads each have their own, it is
    [experts x outputs, sums, 1] of a convolution in groups, whose channels are those of all experts. Bags of equal
    sizes become an embedding and a sum, mean or maximum.
    """
    constant = constants(module.graph)
    for node in [node for node in module.graph.nodes if node not in constant]:
        product = _product(node, constant)
        product = None if product is None else _without_ones(product)
        if product is not None:
            new = _rewritten(product) if product.has_layer else None
        else:
            rewrite = _OTHERS.get(packet(node))
            new = None if rewrite is None else rewrite(node)
        if new is not None:
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _bilinear(node: fx.Node) -> fx.Node | None:
    """Sum x[i] w[o, i, j] y[j] + bias as a linear operator on y, times x, summed."""
    x, y, w, bias = (argument(node, position) for position in range(4))
    outputs, first, second = sizes_of(w)
    made = inserted(node, _aten.linear.default, y, inserted(node, _aten.reshape.default, w, [outputs * first, second]))
    made = inserted(node, _aten.unflatten.int, made, -1, [outputs, first])
    made = inserted(node, _aten.mul.Tensor, made, inserted(node, _aten.unsqueeze.default, x, -2))
    made = inserted(node, _aten.sum.dim_IntList, made, [-1])
    return made if bias is None else inserted(node, _aten.add.Tensor, made, bias)


def _lookup(node: fx.Node) -> fx.Node | None:
    """Rows of a trained matrix, by one tensor of numbers, as an embedding."""
    table, places = argument(node, 0), argument(node, 1)
    if not (is_parameter(table) and is_float(table) and len(sizes_of(table)) == 2 and len(places) == 1):
        return None
    module: Any = node.graph.owning_module
    if not isinstance(tensor_of(module, table), nn.Parameter):
        return None
    is_number = places[0] is not None and places[0].meta["val"].dtype in (torch.int32, torch.int64)
    return inserted(node, _aten.embedding.default, table, places[0]) if is_number else None


def _bag(node: fx.Node) -> None:
    """Sum, mean or maximum of the rows of bags, in the place of what reads them; not of unequal bags, or parts of one.

    Bags are equally long where they start at multiples of a number, which torch makes of indices [N, length].
    """
    table, places, starts, _, mode, _, factors, with_end, padding = (argument(node, index) for index in range(9))
    begin, _, length = (argument(starts, index) for index in range(3))
    is_regular = packet(starts) is _aten.arange and begin == 0 and isinstance(length, int)
    if not is_regular or with_end or (padding is not None and padding >= 0):
        return
    if not statically_known_true(sizes_of(places)[0] == length * sizes_of(starts)[0]):
        return
    places = inserted(node, _aten.unflatten.int, places, 0, [-1, length])
    rows = inserted(node, _aten.embedding.default, table, places)
    if factors is not None:
        factors = inserted(node, _aten.unflatten.int, factors, 0, [-1, length])
        rows = inserted(node, _aten.mul.Tensor, rows, inserted(node, _aten.unsqueeze.default, factors, -1))
    bags = inserted(node, _OF_BAGS[mode], rows, [1])
    for user in [user for user in node.users if user.args[1] == 0]:
        user.replace_all_uses_with(bags)


def _product(node: fx.Node, constant: frozenset[fx.Node]) -> _Product | None:
    """The product that the node computes with one constant factor, unless it is that of a layer as it is."""
    if packet(node) is _aten.einsum:
        return _of_einsum(node, constant)
    positions = _OPERATORS.get(packet(node))
    if positions is None or any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return None
    added, left, right = (argument(node, position) for position in positions)
    if (left in constant) == (right in constant):
        return None
    dimensions = len(sizes_of(left)), len(sizes_of(right))
    of_left, of_right, of_output = _letters(*dimensions)
    if packet(node) is _aten.linear:
        _, transposed = parameter_behind(right)
        if left in constant or (dimensions[0] > 1 and not (transposed and num_uses(_unturned(right)) > 1)):
            return None
        of_right = of_right[::-1]
    elif left not in constant and dimensions[0] > 1 and dimensions[1] == 2:
        return None
    if packet(node) is _aten.addbmm:
        of_output = of_output[1:]
    if left in constant:
        return _Product(node, right, left, of_right, of_left, of_output, added)
    return _Product(node, left, right, of_left, of_right, of_output, added)


def _letters(left: int, right: int) -> tuple[str, str, str]:
    """Of the factors of a product of matrices with so many dimensions, and of what it makes."""
    batch = "abcdefgh"[: max(left, right, 2) - 2]
    of_left = batch[len(batch) - max(0, left - 2) :] + ("mk" if left > 1 else "k")
    of_right = batch[len(batch) - max(0, right - 2) :] + ("kn" if right > 1 else "k")
    return of_left, of_right, batch + "m" * (left > 1) + "n" * (right > 1)


def _of_einsum(node: fx.Node, constant: frozenset[fx.Node]) -> _Product | None:
    """The product of an einsum of two factors, each letter once in a factor."""
    equation, factors = str(argument(node, 0)).replace(" ", ""), argument(node, 1)
    if len(factors) != 2 or (factors[0] in constant) == (factors[1] in constant):
        return None
    read, arrow, of_output = equation.partition("->")
    if not arrow:
        once = sorted(letter for letter in read if letter.isalpha() and read.count(letter) == 1)
        of_output = "".join(["..." * ("..." in read), *once])
    of, longest = read.split(","), ""
    for place, factor in enumerate(factors):
        count = len(sizes_of(factor)) - len(of[place].replace("...", ""))
        digits = "01234567"[8 - count :] if "..." in of[place] else ""
        of[place], longest = of[place].replace("...", digits), max(longest, digits, key=len)
    of_output = of_output.replace("...", longest)
    if any(len(set(letters)) < len(letters) for letters in (*of, of_output)):
        return None
    w = 0 if factors[0] in constant else 1
    return _Product(node, factors[1 - w], factors[w], of[1 - w], of[w], of_output)


def _unturned(w: fx.Node) -> fx.Node:
    while packet(w) in TRANSPOSES:
        w = argument(w, 0)
    return w


def _without_ones(product: _Product) -> _Product:
    """The product without dimensions of size 1, or that repeat one, beside larger ones of the other factor."""
    x, of_x = product.x, product.of_x
    while packet(x) is _aten.expand:
        base = argument(x, 0)
        sizes = (*[1] * (len(of_x) - len(sizes_of(base))), *sizes_of(base))
        repeated = [
            letter for letter, old, new in zip(of_x, sizes, sizes_of(x), strict=True) if old is not new and old != new
        ]
        if not {*repeated} <= {*product.of_w} & {*product.of_output}:
            break
        x, of_x = base, of_x[len(of_x) - len(sizes_of(base)) :]
    product = replace(product, x=x, of_x=of_x)
    of_x_size, of_w_size = (
        dict(zip(*pair, strict=True)) for pair in ((of_x, sizes_of(x)), (product.of_w, sizes_of(product.w)))
    )
    for letter in [letter for letter in of_x if letter in of_w_size]:
        if of_w_size[letter] == 1:
            w = product.do(_aten.squeeze.dim, product.w, product.of_w.index(letter))
            product = replace(product, w=w, of_w=product.of_w.replace(letter, ""))
        elif isinstance(of_x_size[letter], int) and of_x_size[letter] == 1:
            x = product.do(_aten.squeeze.dim, product.x, product.of_x.index(letter))
            product = replace(product, x=x, of_x=product.of_x.replace(letter, ""))
    return product


def _rewritten(product: _Product) -> fx.Node:
    """The node that returns what the product's does."""
    experts, rows, outputs = product.experts, product.rows, product.outputs
    bias = _bias(product)
    if experts:
        y, made = _by_expert(product, bias), rows[:1] + experts + outputs + rows[1:]
    else:
        y, made = _linear(product, bias), rows + outputs
    y = _permuted(product, y, made, product.of_output)
    return y if product.added is None or bias is not None else product.do(_aten.add.Tensor, y, product.added)


def _linear(product: _Product, bias: fx.Node | None) -> fx.Node:
    """[*rows, *outputs]."""
    do, rows, sums, outputs = product.do, product.rows, product.sums, product.outputs
    x = _permuted(product, product.x, product.of_x, rows + sums)
    x = do(_aten.flatten.using_ints, x, len(rows), -1) if len(sums) > 1 else x
    x = x if rows else do(_aten.unsqueeze.default, x, 0)
    matrix, letters = _unturned(product.w), product.of_w
    if len(letters) == len(sizes_of(matrix)) == 2 and parameter_behind(product.w)[0] is not None:
        letters = letters[:: -1 if parameter_behind(product.w)[1] else 1]
    else:
        matrix = _permuted(product, product.w, letters, outputs + sums)
        matrix = do(_aten.reshape.default, matrix, [product.count(outputs), product.count(sums)])
        letters = outputs + sums
    if letters == sums + outputs and bias is None:
        y = do(_aten.matmul.default, x, matrix)
    else:
        matrix = matrix if letters == outputs + sums else do(_aten.t.default, matrix)
        y = do(_aten.linear.default, x, matrix, bias)
    if len(outputs) != 1:
        y = _unflattened(product, y, -1, outputs)
    return y if rows else do(_aten.squeeze.dim, y, 0)


def _by_expert(product: _Product, bias: fx.Node | None) -> fx.Node:
    """[*rows[:1], *experts, *outputs, *rows[1:]]."""
    do, rows, experts, sums, outputs = product.do, product.rows, product.experts, product.sums, product.outputs
    x = _permuted(product, product.x, product.of_x, rows[:1] + experts + sums + rows[1:])
    x = x if rows else do(_aten.unsqueeze.default, x, 0)
    x = do(_aten.flatten.using_ints, x, 1, len(experts + sums)) if len(experts + sums) > 1 else x
    x = x if len(rows) > 1 else do(_aten.unsqueeze.default, x, -1)
    width = max(1, len(rows) - 1)
    matrices = _permuted(product, product.w, product.of_w, experts + outputs + sums)
    shape = [product.count(experts + outputs), product.count(sums), *[1] * width]
    matrices = do(_aten.reshape.default, matrices, shape)
    steps = [1] * width, [0] * width, [1] * width
    y = do(_CONVOLUTIONS[width], x, matrices, bias, *steps, product.count(experts))
    y = y if len(rows) > 1 else do(_aten.squeeze.dim, y, -1)
    y = _unflattened(product, y, 1, experts + outputs)
    return y if rows else do(_aten.squeeze.dim, y, 0)


def _bias(product: _Product) -> fx.Node | None:
    """What is added, as one number for each channel of the operator; None where it is not that, or nothing."""
    added, do, channels = product.added, product.do, product.experts + product.outputs
    if added is None or added.op != "get_attr" or not is_float(added):
        return None
    letters = product.of_output[len(product.of_output) - len(sizes_of(added)) :]
    sizes = dict(zip(letters, sizes_of(added), strict=True))
    if any(sizes.get(letter, 1) != 1 for letter in product.rows):
        return None
    if len(channels) == 1 and letters == channels and sizes[channels] == product.count(channels):
        return added
    for letter in [letter for letter in product.of_output if letter not in letters]:
        added, letters = do(_aten.unsqueeze.default, added, 0), letter + letters
    added = _permuted(product, added, letters, product.rows + channels)
    added = do(_aten.expand.default, added, [1] * len(product.rows) + [product.sizes[letter] for letter in channels])
    return do(_aten.reshape.default, added, [product.count(channels)])


def _permuted(product: _Product, x: fx.Node, of_x: str, wanted: str) -> fx.Node:
    return x if of_x == wanted else product.do(_aten.permute.default, x, [of_x.index(letter) for letter in wanted])


def _unflattened(product: _Product, x: fx.Node, dimension: int, letters: str) -> fx.Node:
    sizes = [product.sizes[letter] for letter in letters]
    if not sizes:
        return product.do(_aten.squeeze.dim, x, dimension)
    return x if len(sizes) == 1 else product.do(_aten.unflatten.int, x, dimension, sizes)


#: Operators that are no product of two factors -> what rewrites them.
_OTHERS = {_aten.bilinear: _bilinear, _aten.embedding_bag: _bag, _aten.index: _lookup}
