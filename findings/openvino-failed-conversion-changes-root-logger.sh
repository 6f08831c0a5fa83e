#!/usr/bin/env bash
# OpenVINO 2026.4.1: openvino.convert_model of an exported program with an operator that it cannot convert raises, and
# leaves the root logger of Python changed: its level is ERROR, and it has one handler and one filter more.
#
# A program that goes on after the error, to try another target, loses all later warnings, its own and those of other
# libraries.
#
# Seen (openvino 2026.4.1, torch 2.13.0), level, handlers and filters: before 30, 0, 0; after 40, 1, 1.
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 openvino==2026.4.1 packaging==26.3
"$work/venv/bin/python" - <<'PYTHON'
import logging

import openvino
import torch


class Bessel(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def state():
    root = logging.getLogger()
    return root.level, len(root.handlers), len(root.filters)


print("openvino", openvino.__version__, "torch", torch.__version__)
program, before = torch.export.export(Bessel(), (torch.ones(3),)), state()
try:
    openvino.convert_model(program)
except openvino.frontend.OpConversionFailure:
    print("level, handlers, filters:", before, "->", state())
else:
    raise SystemExit("it converts now")
assert before == (logging.WARNING, 0, 0)
assert state() == (logging.ERROR, 1, 1)
print("as described")
PYTHON
