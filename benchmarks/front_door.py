"""Ten networks of the zoo, each from Python and as MODEL in another form: do plan and accuracy come out the same?

    python -m benchmarks.front_door --form huggingface
    python -m benchmarks.front_door --form onnx

Each network is written in the form, read again as the command line reads MODEL, and both are quantized for onnxruntime
at six bits on average, with the same data. Needs `pip install 'mixbit[onnxruntime,huggingface]'`. Exits with 1 where a
row differs.
"""

import argparse
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import mixbit as mb
from benchmarks.zoo.names import make
from benchmarks.zoo.subject import Subject
from mixbit.core import split_batches
from mixbit.models.load import load_model
from mixbit.pipeline.auto import Deployed
from mixbit.pipeline.settings import Settings

TARGET, BUDGET = "onnxruntime", mb.Budget(mean_bits=6)


def huggingface(subject: Subject, folder: Path) -> str:
    """Write the network as a folder of Hugging Face's; return MODEL."""
    network: Any = subject.model
    network.save_pretrained(folder / "net")
    return str(folder / "net")


def onnx(subject: Subject, folder: Path) -> str:
    """Write the network as an ONNX file, by torch's exporter; return MODEL."""
    return _exported(subject, folder, dynamo=True)


def onnx_torchscript(subject: Subject, folder: Path) -> str:
    """Write the network as an ONNX file, by torch's exporter of before, which traces; return MODEL."""
    return _exported(subject, folder, dynamo=False)


def _exported(subject: Subject, folder: Path, *, dynamo: bool) -> str:
    inputs = split_batches(subject.model, subject.calibration)[0][0]
    arguments = [*inspect.signature(subject.model.forward).parameters]
    names = [*arguments[: len(inputs.args)], *inputs.kwargs]
    options: dict[str, Any] = {"dynamic_axes": {name: {0: "batch"} for name in names}}
    if dynamo:
        options = {"dynamic_shapes": {name: {0: torch.export.Dim("batch")} for name in names}, "external_data": False}
    path = folder / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            subject.model,
            inputs.args,
            path,
            kwargs=dict(inputs.kwargs),
            input_names=names,
            dynamo=dynamo,
            verbose=False,
            **options,
        )
    return str(path)


@dataclass(frozen=True)
class Form:
    """A form of MODEL: a function that writes a network in it, and the subjects of the zoo that can be."""

    write: Callable[[Subject, Path], str]
    names: tuple[str, ...]


_EXPORTED = (
    "resnet", "mobilenet_v3", "efficientnet", "shufflenet_v2", "densenet", "unet_upsampling", "lstm", "gru", "crnn",
    "text_cnn", "convnextv2",
)  # fmt: skip
FORMS = {
    "onnx": Form(onnx, _EXPORTED),
    "onnx_torchscript": Form(onnx_torchscript, _EXPORTED),
    "huggingface": Form(
        huggingface,
        ("bert", "distilbert", "gpt2", "llama", "qwen3", "t5", "vit", "swin", "convnextv2", "segformer"),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=list(FORMS), required=True)
    parser.add_argument("--only", help="names of subjects, with commas between")
    given = parser.parse_args(arguments)
    form = FORMS[given.form]
    alike = [row(name, form) for name in (given.only.split(",") if given.only else form.names)]
    print(f"{sum(alike)} of {len(alike)} alike")
    sys.exit(not all(alike))


def row(name: str, form: Form) -> bool:
    """Quantize a subject both ways, print what comes out, and return whether it is the same."""
    began, subject = time.perf_counter(), make(name)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        loaded = load_model(form.write(subject, folder))
        ways = [
            _quantized(subject.model, subject.task, subject, folder / "python"),
            _quantized(loaded.module, loaded.task or subject.task, subject, folder / "form"),
        ]
        schemes, figures = ([of(way) for way in ways] for of in (_schemes, _figures))
    plans = "same plan" if schemes[0] == schemes[1] else "OTHER PLAN"
    print(
        f"{name}: {plans} of {len(schemes[0])} layers; task {loaded.task or subject.task}; from Python {figures[0]}, "
        f"from the form {figures[1]}; {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    return schemes[0] == schemes[1] and figures[0] == figures[1]


def _quantized(model: Any, task: str, subject: Subject, out: Path) -> Deployed:
    return mb.auto_quantize(
        model,
        subject.calibration,
        target=TARGET,
        budget=BUDGET,
        out=out,
        eval_batches=subject.test,
        settings=Settings(task=task),
    )


def _schemes(deployed: Deployed) -> list[str]:
    """Schemes in the order of the layers, whose names a form may change."""
    return list(deployed.plan.layers.values())


def _figures(deployed: Deployed) -> str:
    """Accuracy where there are labels, agreement, and bytes of the weights, as measured on the file."""
    figures = deployed.comparison
    accuracy = "" if figures.accuracy is None else f"{figures.accuracy:.4%} accuracy, "
    agreement = "" if figures.agreement is None else f"{figures.agreement:.4%} agreement, "
    return f"{accuracy}{agreement}{figures.weight_bytes:,} bytes"


if __name__ == "__main__":
    main()
