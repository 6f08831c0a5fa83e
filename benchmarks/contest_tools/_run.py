"""One row of the contest, in its tool's environment: `python -m benchmarks.contest_tools._run FOLDER TOOL METHOD BITS`.

The folder holds `model.pt`, `data.safetensors` and `facts.json`; `outputs.safetensors` and `row.json` are written to
it. Seconds are CPU seconds of quantizing alone, and memory is what its peak adds to what the process held before.
"""

import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from benchmarks import contest_tools
from benchmarks.contest_tools._tool import Job, Quantized


def usage(job: Job, quantized: Quantized) -> dict[str, float]:
    """Bytes of all weights with their scales, and their mean bits without; what is not quantized takes 32 bits."""
    left = job.num_weights - sum(stored.numel for stored in quantized.weights)
    bits = sum(stored.numel * stored.bits for stored in quantized.weights) + 32 * left
    scales = sum(stored.scales for stored in quantized.weights)
    return {"bytes": bits / 8 + 4 * scales, "mean_bits": bits / job.num_weights}


def megabytes(field: str) -> float:
    """Memory of this process by Linux: `VmRSS`, what it holds, or `VmHWM`, the most since that was forgotten."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def main() -> None:
    folder, tool, method, mean_bits = (
        Path(sys.argv[1]),
        contest_tools.load(sys.argv[2]),
        sys.argv[3],
        float(sys.argv[4]),
    )
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    data, facts = load_file(folder / "data.safetensors"), json.loads((folder / "facts.json").read_text())
    model = torch.load(folder / "model.pt", weights_only=False)
    size = facts["batch"]
    inputs, labels = data["inputs"].split(size), data["labels"].split(size)
    with TemporaryDirectory(dir=folder) as scratch:
        job = Job(model, inputs, labels, facts["task"], mean_bits, Path(scratch))
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before, began = megabytes("VmRSS"), time.process_time()
        quantized = tool.quantize(job, method)
        row = {"seconds": time.process_time() - began, "megabytes": megabytes("VmHWM") - before}
        with torch.no_grad():
            outputs = torch.cat([quantized.run(batch).float().contiguous() for batch in data["evaluation"].split(size)])
    save_file({"outputs": outputs}, folder / "outputs.safetensors")
    (folder / "row.json").write_text(json.dumps(row | usage(job, quantized)))


if __name__ == "__main__":
    main()
