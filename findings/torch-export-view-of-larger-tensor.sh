#!/usr/bin/env bash
# torch 2.13.0: a model exported for a batch of any size with an input that is a slice of a larger tensor can not be
# decomposed afterwards, nor run with an input that is no slice: AttributeError, "'NoneType' object has no attribute
# 'size'".
#
# torch.export.export(module, (x[:, :6],), dynamic_shapes=({0: Dim.DYNAMIC},)) succeeds, whatever the module is (here
# an Embedding, a Linear and a ReLU). It keeps the condition that the tensor behind the slice, x[:, :6]._base, is not
# 6 wide, and asks it later of tensors that have none behind them; the message says nothing of slices. A copy,
# x[:, :6].clone(), as the example is right, and so are a named dimension, Dim("batch"), no dynamic one, and a slice of
# rows, x[:2]. A slice without a tensor behind it, x[:, :6].detach(), and a strict export do decompose, but the program
# then refuses an input whose rows lie close together, as those of a plain tensor do ("Guard failed").
#
# Seen (torch 2.13.0, CPU), for each of the three modules:
#   x[:, :6], DYNAMIC or AUTO:  run_decompositions AttributeError, run with a copy AttributeError
#   x[:, :6].detach(), strict:  run_decompositions right, run with a copy AssertionError
#   x[:, :6].clone(), x[:2], Dim("batch"): both right
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.export import Dim, export

floats = torch.randn(3, 8)
indices = torch.randint(0, 10, (3, 8))
MODULES = {
    "Embedding": (lambda width: torch.nn.Embedding(10, 4), indices),
    "Linear": (lambda width: torch.nn.Linear(width, 4), floats),
    "ReLU": (lambda width: torch.nn.ReLU(), floats),
}
BOTH, SECOND, NONE = ("AttributeError",) * 2, ("right", "AssertionError"), ("right",) * 2
CASES = {
    "x[:, :6], DYNAMIC": (lambda x: x[:, :6], Dim.DYNAMIC, False, BOTH),
    "x[:, :6], AUTO": (lambda x: x[:, :6], Dim.AUTO, False, BOTH),
    "x[:, :6].detach()": (lambda x: x[:, :6].detach(), Dim.DYNAMIC, False, SECOND),
    "x[:, :6], strict": (lambda x: x[:, :6], Dim.DYNAMIC, True, SECOND),
    "x[:, :6].clone()": (lambda x: x[:, :6].clone(), Dim.DYNAMIC, False, NONE),
    "x[:2]": (lambda x: x[:2], Dim.DYNAMIC, False, NONE),
    "x[:, :6], Dim('batch')": (lambda x: x[:, :6], Dim("batch"), False, NONE),
}


def outcome(action):
    try:
        action()
    except Exception as error:  # what kind it is, is what is looked at
        message = str(error).splitlines()[0]
        if isinstance(error, AttributeError):
            assert message == "'NoneType' object has no attribute 'size'", message
        return type(error).__name__
    return "right"


print("torch", torch.__version__)
for module_name, (make, whole) in MODULES.items():
    for name, (cut, dimension, strict, wanted) in CASES.items():
        x = cut(whole)
        program = export(make(x.shape[1]), (x,), dynamic_shapes=({0: dimension},), strict=strict)
        seen = (
            outcome(lambda: program.run_decompositions({})),
            outcome(lambda: program.module()(x.clone(memory_format=torch.contiguous_format))),
        )
        print(f"{module_name}, {name}: run_decompositions {seen[0]}, run with a copy {seen[1]}")
        assert seen == wanted, (seen, wanted)
        assert outcome(lambda: program.module()(x)) == "right", "the example itself is refused"
print("as described")
PYTHON
