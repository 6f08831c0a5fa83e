"""Why torch.export cannot follow a model: the line of the user's code, the reason, and the way out for that cause."""

import re
import traceback
from dataclasses import dataclass

import torch
from torch import nn

from mixbit.core import Inputs, InvalidInput, users_code, users_frames


@dataclass(frozen=True)
class _Cause:
    """What torch says where one cause stops the export: a pattern of its text; the reason and the way out, for people.

    A reason may take groups of the pattern.
    """

    pattern: str
    reason: str
    way_out: str


_CAUSES = (
    _Cause(
        r"data-dependent|DynamicOutputShape|Eq\(u\d+|GuardOnDataDependent",
        "a value of a tensor decides the path, or a size",
        "choose between tensors by torch.where or torch.cond; keep sizes those of the inputs, with a mask for what "
        "does not count",
    ),
    _Cause(
        r"Unsupported input type <class '([^']+)'>",
        r"an input is a \1, which holds no tensors that torch can see",
        "give its tensors as inputs of their own, and let a wrapper's forward build the object from them",
    ),
    _Cause(
        r"Found <class '([^']+)'> in output",
        r"the model returns a \1",
        "return tensors, in tuples, lists, dicts or dataclasses; a wrapper's forward may take them out of the object",
    ),
    _Cause(
        r"no fake impl registered for <CustomOpDef\(([^)]+)\)>|no fake impl registered for (\S+)",
        r"\1\2 is an operator of your own",
        "write it with torch's operators: no runtime has another",
    ),
    _Cause(
        r"\.numpy\(\) is not supported|numpy.ndarray",
        "the code leaves torch for numpy",
        "compute with torch's functions; what is constant can be a buffer, made once in __init__",
    ),
    _Cause(
        r"^\s*(aten\.\S*sparse\S*|aten\.\S+)\s*$|Could not run '(aten::\S+)'",
        r"the operator \1\2 cannot be followed",
        "take another that does the same, as dense tensors in place of sparse or quantized ones",
    ),
    _Cause(
        r"fake tensor in the exported program constant|mutat|in-place",
        "forward changes a parameter, or a tensor that the model keeps",
        "return what is computed, and leave parameters as they are in eval mode",
    ),
)
_FIXED = re.compile(
    r"specialized it to be a constant \((\d+)\)|static shape of (\d+) for dimension|due to hint of (\d+)"
)
_PLACES = re.compile(r"L\['(\w+)'\][^\n]*?\.size\(\)\[(\d+)\]|inputs\['(\w+)'\][^\n]*?\.shape\[(\d+)\]")
_UNKNOWN = "`torch.export.draft_export` lists every such place; what it names is to be written otherwise"


def explain(error: BaseException, model: nn.Module, inputs: Inputs) -> str:
    """The line of the user's code where the export stopped, torch's reason, and what to do."""
    text = str(error)
    fixed = _FIXED.search(text)
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    if fixed is not None:
        reason, way_out = _fixed(next(filter(None, fixed.groups())), text, inputs)
    else:
        for cause in _CAUSES:
            match = re.search(cause.pattern, f"{type(error).__name__}\n{text}", re.MULTILINE)
            if match is not None:
                reason, way_out = f"{match.expand(cause.reason)} ({reason})", cause.way_out
                break
        else:
            way_out = _UNKNOWN
    frames = _frames(error) or _frames(_failure_of_a_larger_batch(model, inputs) if fixed is not None else None)
    forward = [frame for frame in frames if frame.name == "forward"] or frames
    where = f"{forward[-1].filename}:{forward[-1].lineno}: {forward[-1].line}" if forward else "the model"
    return f"torch.export cannot follow the model at {where}\n  {type(error).__name__}: {reason}\n  Way out: {way_out}"


def _fixed(size: str, text: str, inputs: Inputs) -> tuple[str, str]:
    """Reason and way out where a dimension that should be free is tied to a number."""
    places = {(first or other, int(axis or another)) for first, axis, other, another in _PLACES.findall(text)}
    further = sorted(place for place in places if place[1] > 0)
    if not further:
        return f"the code fixes the batch size at {size}", (
            "let the batch size not be fixed in the code (x.size(0) or -1 instead of len(x) or a number); keep what "
            "all samples share in the model as a buffer, and wrap a model that takes samples in another dimension than "
            "the first: its forward(x) returns model(x.transpose(0, 1))"
        )
    named = ", ".join(f"{name}:{axis}" for name, axis in further)
    same = [
        f"{name}:{axis}"
        for name, leaf in inputs.kwargs.items()
        if isinstance(leaf, torch.Tensor)
        for axis, length in enumerate(leaf.shape)
        if axis > 0 and length == int(size) and (name, axis) not in places
    ]
    tied = f"; or name the others that change with it: {', '.join(same)}" if same else ""
    return f"dimension {named} is to be free, and the code fixes it at {size}", (
        "take the length from the tensor in the code (x.size(1) or -1 instead of len(x) or a number), or leave the "
        f"dimension out of `dynamic`{tied}"
    )


def _frames(error: BaseException | None) -> list[traceback.FrameSummary]:
    """The frames of the error and of its causes that are the user's code, not torch's or ours."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return [frame for cause in causes for frame in users_frames(cause)]


def _failure_of_a_larger_batch(model: nn.Module, inputs: Inputs) -> BaseException | None:
    """What the model raises for one sample more: where the batch size is fixed, its traceback names the place."""
    larger = inputs.map(lambda leaf: torch.cat([leaf, leaf[:1]]) if leaf.ndim > 0 else leaf)
    try:
        with users_code("the model fails"), torch.no_grad():
            larger.call(model)
    except InvalidInput as error:
        return error
    return None
