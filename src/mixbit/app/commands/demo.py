"""`mixbit demo`."""

from pathlib import Path
from typing import Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.printing import print_json, print_rows, say


def demo(
    out: Annotated[Path | None, typer.Option("--out", help="keep the folders here")] = None,
    as_json: options.AsJson = False,
) -> None:
    """The whole loop on the shipped network and data, for OpenVINO and onnxruntime."""
    from mixbit.demo import COLUMNS, run_demo

    rows = run_demo(out)
    if as_json:
        print_json({"rows": [vars(row) for row in rows]})
    else:
        print_rows("handwritten digits", COLUMNS, [row.cells() for row in rows])
        say("every file ran in its runtime and matches its simulation and the predicted bytes")
        if out is not None:
            say(f"written to {out}; try: mixbit bench {out}/openvino-mixed")
