#!/usr/bin/env bash
# torch 2.13.0: tracing aten.pad or aten.constant_pad_nd with make_fx on the fake tensors of an exported program makes the
# program's dynamic dimension a constant, in place: the symbol is replaced by the example's size in all nodes that were
# exported before, although torch.export itself takes the same operator with the same dynamic dimension.
#
# It hits who rewrites a part of an exported program by tracing it again, to decompose an operator, say. What is traced is
# right; but from then on every size in the program reads as a number, and what looks for symbols finds none.
# `shape_env.suppress_guards()` around the trace leaves the symbol alone. Other composites, as flatten, do no harm.
#
# Seen (torch 2.13.0), the first size of the program's input before and after a trace of the operator alone, example 8:
#   pad: a symbol, then 8; constant_pad_nd: a symbol, then 8; flatten: a symbol, then a symbol
#   pad within suppress_guards(): a symbol, then a symbol; torch.export of pad: a symbol
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
from contextlib import nullcontext

import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


def exported(module):
    return torch.export.export(module, (torch.randn(8, 4),), dynamic_shapes=({0: Dim.DYNAMIC},))


def first_size(program):
    (x,) = (node.meta["val"] for node in program.graph.nodes if node.op == "placeholder")
    size = x.shape[0]
    return x, str(size) if isinstance(size, int) or size.node.expr.is_number else "a symbol"


def traced_again(name, function, *, suppressed=False):
    program = exported(nn.ReLU())
    x, before = first_size(program)
    with x.fake_mode as mode, mode.shape_env.suppress_guards() if suppressed else nullcontext():
        make_fx(function)(x)
    _, after = first_size(program)
    print(f"{name}: {before}, then {after}")
    return before, after


print("torch", torch.__version__)
pad = lambda x: aten.pad.default(x, (1, 1))
assert traced_again("pad", pad) == ("a symbol", "8")
assert traced_again("constant_pad_nd", lambda x: aten.constant_pad_nd.default(x, (1, 1))) == ("a symbol", "8")
assert traced_again("flatten", lambda x: aten.flatten.using_ints(x)) == ("a symbol", "a symbol")
assert traced_again("pad, guards suppressed", pad, suppressed=True) == ("a symbol", "a symbol")
_, size = first_size(exported(nn.ConstantPad1d(1, 0.0)))
print(f"torch.export of a padding: {size}")
assert size == "a symbol"
PYTHON
