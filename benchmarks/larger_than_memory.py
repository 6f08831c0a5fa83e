"""A language model whose weights do not fit into memory: measured, searched, rounded by GPTQ, and written.

    python -m benchmarks.larger_than_memory --parameters 200e6 --memory 2GB --compare
    python -m benchmarks.larger_than_memory --parameters 3e9 --memory 4GB

Makes a random network like Llama in files of bfloat16 (in the folder --scratch, where they stay for the next run), and
prints for each step its seconds and the peak of the process's memory (VmHWM) up to then. With --compare another process
does the same with all weights in memory, and prints whether table, plan and integers are equal.
"""

import argparse
import hashlib
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import mixbit as mb
from mixbit.core import resident_bytes
from mixbit.core.io.stored import num_bytes
from mixbit.models.load import load_model
from mixbit.quantization.calibrate import calibrate

VOCABULARY, HEAD = 32000, 64
CHOICES = ["w4g32", "w8"]
#: The file of the target `packed`.
FILE = "model.safetensors"


def sizes_of(parameters: float) -> tuple[int, int, int]:
    """Width, inner width and number of blocks of a network of about that many parameters."""
    width = 2048 if parameters >= 1e9 else 768 if parameters >= 1e8 else 256
    inner = width * 8 // 3 // 64 * 64
    a_block = 4 * width**2 + 3 * width * inner
    return width, inner, max(1, round((parameters - 2 * VOCABULARY * width) / a_block))


def make(folder: Path, parameters: float) -> None:
    """Write the network, a file for each block."""
    width, inner, blocks = sizes_of(parameters)
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}

    def save(file: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {
            name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
            for name, shape in shapes.items()
        }
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, folder / file)
        weight_map.update(dict.fromkeys(shapes, file))

    folder.mkdir(parents=True)
    save("ends.safetensors", {
        "model.embed_tokens.weight": (VOCABULARY, width), "model.norm.weight": (width,),
        "lm_head.weight": (VOCABULARY, width),
    })  # fmt: skip
    for block in range(blocks):
        shapes = {f"self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width)}
        shapes |= {"mlp.down_proj.weight": (width, inner)}
        shapes |= {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
        save(f"block-{block:03}.safetensors", {f"model.layers.{block}.{name}": shape for name, shape in shapes.items()})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": blocks, "num_attention_heads": width // HEAD,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))


def timed(what: str, step: Callable[[], Any]) -> Any:
    """What the step returns; prints seconds and the peak so far."""
    began = time.perf_counter()
    done = step()
    peak = (resident_bytes(peak=True) or 0) / 1e9
    print(f"{what:20} {time.perf_counter() - began:8.1f} s, peak {peak:.3f} GB", flush=True)
    return done


def run(options: argparse.Namespace, folder: Path, out: Path, *, in_memory: bool) -> None:
    """Do all steps, and write the table and the artefact."""
    print("all weights in memory" if in_memory else f"weights in files, --memory {options.memory}")
    generator = torch.Generator().manual_seed(1)
    shape = options.sequences // options.batches, options.length
    batches = [{"input_ids": torch.randint(0, VOCABULARY, shape, generator=generator)} for _ in range(options.batches)]
    network = load_model(str(folder), on_meta=not in_memory)
    room = {} if in_memory else {"weights": folder, "memory": options.memory, "scratch": out.parent}
    graph = timed("capture", lambda: mb.capture(network.module, batches[0], **room))
    calibration = timed("calibrate", lambda: calibrate(graph, batches, target=options.target))
    if options.table is None:
        table = timed(
            "measure",
            lambda: mb.measure(
                graph, calibration, target=options.target, task="language", metric=options.metric, choices=CHOICES
            ),
        )
    else:
        table = options.table
    table.save(out / "sensitivity.json")
    plan = timed("search", lambda: mb.search(table, mb.Budget(mean_bits=options.mean_bits)))
    for rounding in options.roundings:
        small = timed(rounding, lambda name=rounding: mb.quantize(graph, plan, calibration, rounding=name))
        timed("export", lambda name=rounding, small=small: mb.export(small, out / name))
    if not in_memory:
        held, most = resident_bytes(peak=True) or 0, 1.1 * num_bytes(options.memory, "memory")
        print(f"peak {held / 1e9:.3f} GB, allowed {most / 1e9:.2f} GB: {'ok' if held <= most else 'TOO MUCH'}")


def compare(first: Path, second: Path, roundings: Sequence[str]) -> None:
    """Print how far two runs are from each other."""
    a, b = (mb.Sensitivity.load(place / "sensitivity.json") for place in (first, second))
    apart = np.abs(a.loss - b.loss) / np.maximum(np.abs(a.loss), np.finfo(float).tiny)
    print(f"table: largest relative difference {apart.max():.1e}")
    for rounding in roundings:
        plans, weights = ([place / rounding / file for place in (first, second)] for file in ("plan.json", FILE))
        for pair in (plans, weights):
            digests = [hashlib.sha256(path.read_bytes()).digest() for path in pair if path.exists()]
            if digests:  # files of other targets are equal in what they hold, in another order
                print(f"{rounding} {pair[0].name}: {'equal' if digests[0] == digests[1] else 'DIFFERENT'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=3e9)
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/larger-than-memory"))
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--target", default="packed", choices=["packed", "onnxruntime", "openvino"])
    parser.add_argument("--metric", default="fisher", choices=["fisher", "weight_error"])
    parser.add_argument("--mean-bits", type=float, default=6.0)
    parser.add_argument("--roundings", nargs="+", default=["nearest", "gptq"])
    parser.add_argument("--table", type=mb.Sensitivity.load, help="sensitivity.json of an earlier run")
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args(arguments)
    folder = options.scratch / f"llama-{options.parameters:.0e}"
    context = multiprocessing.get_context("spawn")  # what making the network takes is no part of the figures

    def in_child(function: Callable[..., None], *given: Any, **named: Any) -> None:
        process = context.Process(target=function, args=given, kwargs=named)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)

    if not (folder / "config.json").exists():
        in_child(make, folder, options.parameters)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: width, inner width, blocks {sizes_of(options.parameters)}, {size / 1e9:.2f} GB")
    outs = [options.scratch / name for name in ("from-files", "in-memory")]
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
    in_child(run, options, folder, outs[0], in_memory=False)
    if options.compare:
        in_child(run, options, folder, outs[1], in_memory=True)
        compare(*outs, options.roundings)


if __name__ == "__main__":
    main()
