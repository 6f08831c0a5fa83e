"""Write the JSON schemas anew, from the types that read the files: `python -m mixbit.app.schemas.generate`."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mixbit.app.schemas import SCHEMAS
from mixbit.core import Plan, Sensitivity, TableFile, write_text
from mixbit.metric_study.study import StudyFile
from mixbit.results.result import Result
from mixbit.results.sweep import Sweep
from mixbit.searches.front import FrontFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, str]:
    """Name -> text of each schema."""
    types = {
        "plan": Plan,
        "sensitivity": Sensitivity,
        "front": FrontFile,
        "result": Result,
        "study": StudyFile,
        "sweep": Sweep,
    }
    made = {name: TypeAdapter(types[name]).json_schema() for name in SCHEMAS}
    made["sensitivity"] = _together(TypeAdapter(TableFile).json_schema(), made["sensitivity"])
    return {
        name: json.dumps({"$schema": DIALECT} | schema | {"title": SCHEMAS[name]}, indent=2) + "\n"
        for name, schema in made.items()
    }


def _together(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """An object with the properties of both."""
    return second | {
        "properties": first["properties"] | second["properties"],
        "required": [*first["required"], *second["required"]],
    }


def main() -> None:
    """Write them."""
    for name, text in schemas().items():
        write_text(Path(__file__).parent / f"{name}.json", text)


if __name__ == "__main__":
    main()
