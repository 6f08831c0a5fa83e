"""Options that several commands have."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="file.py:function or package.module:function")]
Data = Annotated[str, typer.Option("--data", help="DATA: calibration batches; the same form as MODEL")]
TargetName = Annotated[str, typer.Option("--target", help="onnxruntime, openvino or packed")]
BUDGET = typer.Option("--budget", help="name=value, as in mean_bits=4; several may stand together")
Choices = Annotated[str | None, typer.Option("--choices", help="schemes, as in w4a8,w8a8")]
TaskName = Annotated[str, typer.Option("--task", help="classification, segmentation, language or regression")]
LossSpec = Annotated[
    str | None,
    typer.Option("--loss", help="file.py:function of (output, labels), for metrics; the task's own otherwise"),
]
Device = Annotated[str, typer.Option("--device", help="where the model runs, as in cpu or cuda")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="of every draw")]
Force = Annotated[bool, typer.Option("--force", help="replace files of the same names in --out")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Metric = Annotated[
    str,
    typer.Option("--metric", help="see: mixbit list metrics; with options as in hawq:vectors=20; or file.py:function"),
]
SEARCH_HELP = "see: mixbit list searches; with options as in mixquant:multiplier=4"
Pins = Annotated[
    list[str] | None,
    typer.Option("--pin", help="NAME=SCHEME, as in 'conv1.weight=w8a8' or 'blocks.*=w4a8'; several may stand"),
]
Ranges = Annotated[
    str,
    typer.Option("--ranges", help="of activations, see: mixbit list ranges; with options as in percentile:share=0.999"),
]
