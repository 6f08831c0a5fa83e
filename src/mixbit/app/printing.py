"""What the command line prints: figures and tables on standard output, messages on standard error."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

#: Columns of a table that goes to a file or another program.
WIDE = 200


def say_what_runs_in_float(names: list[str], count: int) -> None:
    """Name the layers that a runtime did not run in integers, and the count of all."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    if names:
        say(f"{len(names)} of {count} layers did not run in int8: {', '.join(names[:5])}{more}")


def print_rows(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def print_json(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(value, indent=2))


def say(text: str) -> None:
    """Print a message on standard error."""
    print(text, file=sys.stderr)
