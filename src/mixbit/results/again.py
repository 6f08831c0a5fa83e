"""How to make a run again: its command, and the same in Python."""

import shlex
from typing import Any

from mixbit.core import Plan
from mixbit.results.plans import PLAN_FILE, TABLE_FILE
from mixbit.results.result import Result

#: Longest repeated value in the Python code.
LONGEST = 400


def command_of(result: Result) -> str:
    """The command line, quoted for a shell; empty where Python code made the run."""
    return shlex.join(result.command)


def python_of(result: Result, plan: Plan) -> str:
    """A call of auto_quantize with what the run was given. Names stand for what no file holds: model, data, functions.

    A run without a table was given its plan. Texts of the folder appear as quoted strings alone, and names only where
    they are identifiers.
    """
    parts = [_code(name, value) for name, value in result.settings.items() if name.isidentifier() and name != "task"]
    task = result.settings.get("task", result.task)
    if task is None:
        parts.append("task=task")
    elif task != "classification":
        parts.append(f"task={task!r}")
    lines = [
        "import mixbit as mb",
        *(["from mixbit.pipeline import Settings"] if parts else []),
        "",
        "mb.auto_quantize(",
        "    model,",
        "    batches,",
        f"    target={result.target!r},",
        f"    {_goal(result, plan)},",
        '    out="out",',
        *([f"    settings=Settings({', '.join(parts)}),"] if parts else []),
        ")",
    ]
    return "\n".join(lines)


def _goal(result: Result, plan: Plan) -> str:
    if TABLE_FILE not in result.files:
        return f'plan=mb.Plan.load("{PLAN_FILE}")'
    limits = ", ".join(f"{name}={in_full(value)}" for name, value in plan.budget.items() if name.isidentifier())
    return f"budget=mb.Budget({limits})" if limits else "budget=budget"


def _code(name: str, value: Any) -> str:
    """The argument; its name where the value is none that code can say, or too long."""
    if name == "dynamic" and isinstance(value, dict):  # JSON has no numbers as names, and inputs no numbers for names
        value = {int(key) if key.isdecimal() else key: axes for key, axes in value.items()}
    text = name if value is None else repr(value)
    return f"{name}={text if len(text) <= LONGEST else name}"


def in_full(value: float) -> str:
    """Every digit: `3`, `0.15`."""
    return repr(value).removesuffix(".0")
