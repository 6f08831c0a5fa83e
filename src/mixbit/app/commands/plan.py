"""`mixbit plan`: how two plans differ, and a plan as the configuration of another tool."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.commands.options import print_json, print_rows
from mixbit.core import METHOD_PLACES, described_methods, new_file, say, write_text

if TYPE_CHECKING:
    from mixbit.results.plans import PlanDifference

PLAN_HELP = "plan.json, or the folder of a run"

plan = typer.Typer(no_args_is_help=True, help="Compare plans, and write them for other tools.")


@plan.command()
@options.with_quiet
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help=PLAN_HELP)],
    second: Annotated[Path, typer.Argument(metavar="B", help="the same")],
    as_json: options.AsJson = False,
) -> None:
    """Name the layers that take different schemes, with bytes and predicted loss where they are known."""
    from mixbit.results.plans import compare_plans

    difference = compare_plans(first, second)
    if as_json:
        print_json(difference.to_json())
        return
    if difference.layers:
        print_rows("layers", ("layer", "A", "B", "bytes in A", "in B", "loss in A", "in B"), _layers(difference))
    a, b = (side.plan.predicted for side in difference.sides)
    rows = [(name, *(f"{side[name]:g}" if name in side else "-" for side in (a, b))) for name in {**a, **b}]
    if rows:
        print_rows("predicted", ("what", "A", "B"), rows)
    for note in difference.notes:
        say(note)
    count = len(difference.layers)
    differ = "1 layer differs" if count == 1 else f"{count} layers differ"
    say(differ if count else "the plans take the same scheme for every layer")


@plan.command()
@options.with_quiet
def export(
    source: Annotated[Path, typer.Argument(metavar="PLAN", help=PLAN_HELP)],
    to: Annotated[
        str,
        typer.Option(
            help="see: mixbit list recipes; with options as in llmcompressor:modifier=gptq; or file.py:function",
            autocompletion=options.completing(lambda: described_methods(METHOD_PLACES["recipes"])),
        ),
    ],
    out: Annotated[Path, typer.Option(help="the tool's file")],
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the plan as another tool's configuration, which gives every layer the same bits there."""
    from mixbit.recipes.recipe import recipe
    from mixbit.results.plans import load_plan

    tool = options.function_or_name(to, "TOOL")
    with new_file(out, force=force):
        text = recipe(load_plan(source), tool)
        write_text(out, text)
    if as_json:
        print_json({"recipe": str(out), "bytes": len(text.encode())})
    else:
        say(f"written to {out}")


def _layers(difference: "PlanDifference") -> list[tuple[str, ...]]:
    rows = []
    for name, row in difference.to_json()["layers"].items():
        cells = [{} if row[side] is None else row[side] for side in ("a", "b")]
        schemes = [cell.get("scheme", "not there") for cell in cells]
        sizes = ["-" if cell.get("weight_bytes") is None else f"{cell['weight_bytes']:,}" for cell in cells]
        losses = ["-" if cell.get("loss") is None else f"{cell['loss']:.2e}" for cell in cells]
        rows.append((name, *schemes, *sizes, *losses))
    return rows
