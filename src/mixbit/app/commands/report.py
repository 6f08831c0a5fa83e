"""`mixbit report`: the page of a run, written again."""

from pathlib import Path
from typing import Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.commands.options import print_json
from mixbit.core import clean


def report(folder: Annotated[Path, typer.Argument(metavar="DIR")], as_json: options.AsJson = False) -> None:
    """Write report.html of the run in DIR again, from its files alone."""
    options.check_run(folder)
    from mixbit.report.report import rewrite_report

    path = rewrite_report(folder)
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        print(clean(f"written to {path}"))
