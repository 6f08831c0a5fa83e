"""`mixbit schema`: the JSON schemas of the files that mixbit writes."""

from typing import Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.schemas import SCHEMAS, schema_text
from mixbit.core import pick


def schema(
    name: Annotated[
        str,
        typer.Argument(metavar="|".join(SCHEMAS), autocompletion=options.completing(lambda: SCHEMAS)),
    ],
) -> None:
    """Print the JSON schema of a file: plan, sensitivity, result, front, study or sweep."""
    print(schema_text(pick("schema", name, SCHEMAS)), end="")
