"""ExecuTorch's converter, run in a process of its own: importing it takes long, and it may end its process.

The process runs the text of this file. It reads a request from each line of its input, JSON of the form {"program":
file of torch.export, "into": file to write}, and answers with a line, {} or {"error":
what was wrong}. So a second file is lowered without importing the converter again.
"""

import atexit
import json
import os
import subprocess
import sys
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

#: What its process runs.
PROGRAM = Path(__file__).read_text(encoding="utf-8") if "__file__" in globals() else ""
#: Operators that XNNPACK runs on integers as it would in float: layers, moves, and sums but for some next to a tie.
#: Others run in float. It takes no concatenation of parts with factors of their own, and its means in int8 write where
#: they must not when the number of samples grows (ExecuTorch 1.5.1).
EXACT_ON_INTEGERS = {
    "linear.default", "convolution.default", "quantize_per_tensor.default", "dequantize_per_tensor.default",
    "permute_copy.default", "view_copy.default", "unsqueeze_copy.default", "slice_copy.Tensor",
    "max_pool2d.default", "add.Tensor",
}  # fmt: skip


def lower(request: dict[str, str]) -> None:
    """Write the file: what XNNPACK can run is its, the rest is ExecuTorch's own operators'."""
    import torch

    partitions = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir = import_module("executorch.exir")
    partitioner, in_float = partitions.XnnpackPartitioner(), partitions.ConfigPrecisionType.FP32
    for name, config in partitioner.target_partitioner_configs.items():
        if name not in EXACT_ON_INTEGERS and in_float in config.supported_precision_types():
            config.set_enabled_precision_types([in_float])
    edge = exir.to_edge_transform_and_lower(
        torch.export.load(request["program"]),
        partitioner=[partitioner],
        compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
    )
    Path(request["into"]).write_bytes(edge.to_executorch().buffer)


def answer(line: str) -> dict[str, str]:
    """What is said of a request."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lower(json.loads(line))
    except Exception as error:  # noqa: BLE001 whatever the converter raises is told to who asked
        lines = str(error).strip().splitlines() or ["it says nothing"]
        return {"error": f"{type(error).__name__}: {lines[0]}"}
    return {}


def serve() -> None:
    """Answer requests until there are no more; what the converter prints goes nowhere."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            print(json.dumps(answer(line)), file=answers, flush=True)


class Converter:
    """The process, which runs that program and ends with this one."""

    def __init__(self, program: str = PROGRAM) -> None:
        words = [sys.executable, "-P", "-c", program]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        atexit.register(self.end)

    def ask(self, request: dict[str, str]) -> str | None:
        """What went wrong, None where nothing did."""
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline() if self.process.stdout else ""
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line).get("error")
        self.end()
        return f"its process ended with status {self.process.returncode}"

    def end(self) -> None:
        """Close the pipes, and wait for the process."""
        atexit.unregister(self.end)
        self.process.communicate()


@cache
def converter() -> Converter:
    """The one that runs."""
    return Converter()


def lowered(request: dict[str, str]) -> str | None:
    """What went wrong with the request, None where nothing did; a process that ended is replaced at the next one."""
    error: Any = converter().ask(request)
    if converter().process.returncode is not None:
        converter.cache_clear()
    return error


if __name__ == "__main__" and "__file__" not in globals():
    serve()
