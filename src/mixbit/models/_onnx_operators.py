"""The table: ONNX's operators by name -> the function that does the same in torch; and what of them are numbers."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from mixbit.models import _onnx_elementwise, _onnx_layers, _onnx_pools, _onnx_reductions, _onnx_shapes


def _operators(*modules: ModuleType) -> dict[str, Callable[..., Any]]:
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if name[0].isupper() and callable(value) and getattr(value, "__module__", "") == module.__name__
    }


#: Operator -> function; its arguments are the inputs, then the attributes by name.
OPERATORS = _operators(_onnx_elementwise, _onnx_shapes, _onnx_reductions, _onnx_layers, _onnx_pools)
del OPERATORS["Linear"]  # is none of ONNX
#: Operators that the builder itself takes apart.
STRUCTURE = ("Constant", "If", "Loop")
#: Operators over the steps of a sequence.
RECURRENT = ("LSTM", "GRU", "RNN")
#: Operator -> places of the inputs that must be numbers: constants, or computed from shapes.
NUMBERS = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1, 2), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3), "Squeeze": (1,),
    "Unsqueeze": (1,), "Split": (1,), "SplitToSequence": (1,), "SequenceAt": (1,), "ConstantOfShape": (0,),
    "Range": (0, 1, 2), "OneHot": (1,), "TopK": (1,), "CumSum": (1,), "Trilu": (1,), "Resize": (1, 2, 3),
    "Upsample": (1,), "Dropout": (1, 2), "If": (0,), "Loop": (0, 1), "LSTM": (4,), "GRU": (4,), "RNN": (4,),
} | {name: (1,) for name in OPERATORS if name.startswith("Reduce")}  # fmt: skip
#: Operators whose values come from the shape of what they read.
OF_SHAPES = ("Shape", "Size")
#: Operators of one number each, which take a constant of one number as that.
ARITHMETIC = (
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Equal", "Less", "LessOrEqual", "Greater",
    "GreaterOrEqual", "Where", "Clip",
)  # fmt: skip
