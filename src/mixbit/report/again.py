"""How to make a run again: its command, and the same in Python."""

import shlex
from typing import Any

from mixbit.core import Plan
from mixbit.report.words import number
from mixbit.results.result import Result

#: Longest repeated value in the Python code.
LONGEST = 400


def command_of(result: Result) -> str:
    """The command line, quoted for a shell; empty where Python code made the run."""
    return shlex.join(result.command)


def python_of(result: Result, plan: Plan) -> str:
    """A call of auto_quantize with what the run was given. Names stand for what no file holds: model, data, functions.

    Texts of the folder appear as quoted strings alone, and names only where they are identifiers.
    """
    settings = {name: value for name, value in result.settings.items() if name.isidentifier() and name != "task"}
    parts = [f"{name}={_code(name, value)}" for name, value in settings.items()]
    task = result.settings.get("task", result.task)
    if task is None:
        parts.append("task=task")
    elif task != "classification":
        parts.append(f"task=mb.Task.named({task!r})")
    limits = ", ".join(f"{name}={number(value)}" for name, value in plan.budget.items() if name.isidentifier())
    lines = [
        "import mixbit as mb",
        *(["from mixbit.pipeline.settings import Settings"] if parts else []),
        "",
        "mb.auto_quantize(",
        "    model,",
        "    batches,",
        f"    target={result.target!r},",
        f"    budget=mb.Budget({limits})," if limits else "    budget=budget,",
        '    out="out",',
        *(["    eval_batches=eval_batches,"] if any(word.startswith("--eval") for word in result.command) else []),
        *([f"    settings=Settings({', '.join(parts)}),"] if parts else []),
        ")",
    ]
    return "\n".join(lines)


def _code(name: str, value: Any) -> str:
    text = name if value is None else repr(value)
    return text if len(text) <= LONGEST else name
