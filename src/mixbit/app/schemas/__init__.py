"""JSON schemas of the files that mixbit writes, one file each beside this one; `generate` makes them."""

from pathlib import Path

#: Name of a schema, which is that of the file without its ending -> what the file is.
SCHEMAS = {
    "plan": "plan.json: the scheme of every layer",
    "sensitivity": "sensitivity.json: predicted loss and usage of every choice of every layer",
    "front": "front.json: all plans that are best at some budget",
    "result": "result.json: every figure of a run",
    "study": "study.json: which metric to trust on a model",
    "sweep": "sweep.json: every cell of a sweep, with its figures or the reason why it failed",
}
_FOLDER = Path(__file__).parent


def schema_text(name: str) -> str:
    """The schema of that name, as JSON."""
    return (_FOLDER / f"{name}.json").read_text(encoding="utf-8")
