"""Write report.html, one file that needs nothing else, from the files of a run, which may come from anyone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mixbit.core import (
    InvalidInput,
    Plan,
    Sensitivity,
    find_target,
    sha256,
    whole_folder,
    write_text,
)
from mixbit.report import words
from mixbit.report.explorer import explorer_of, is_in_nats
from mixbit.report.layers import layers_of, strips_of, unit_of_costs
from mixbit.report.pages import rendered
from mixbit.report.samples import samples_of
from mixbit.report.verdict import comparison_rows, key_figures, other_plans, uncovered_rows, verdict_of
from mixbit.results.again import command_of, python_of
from mixbit.results.check_set import CHECK_FILE, CheckSet
from mixbit.results.digests import check_digests
from mixbit.results.plans import PLAN_FILE, TABLE_FILE
from mixbit.results.result import RESULT_FILE, Result, inside_of

#: The file.
REPORT_FILE = "report.html"


def write_report(folder: Path, result: Result) -> Result:
    """Write the page into a folder that holds the other files; returns the result with the page among its files."""
    path = folder / REPORT_FILE
    write_text(path, page_of(folder, result))
    return _with_page(result, path)


def rewrite_report(folder: Path) -> Path:
    """Write the page again from the folder alone, and its digest into result.json; returns the path of the page.

    Raises InvalidInput where a file is missing or not what mixbit writes, and TargetMismatch where one has changed.
    """
    result = Result.load(folder)
    text = page_of(folder, result)
    with whole_folder(folder, last=RESULT_FILE, force=True) as new:
        write_text(new / REPORT_FILE, text)
        write_text(new / RESULT_FILE, _with_page(result, new / REPORT_FILE).to_json())
    return folder / REPORT_FILE


def page_of(folder: Path, result: Result) -> str:
    """The page's text; raises as `rewrite_report` does."""
    if PLAN_FILE not in result.files:
        raise InvalidInput(f"{folder / RESULT_FILE}: files lacks {PLAN_FILE}; quantize again")
    if missing := {"num_samples", "weight_bytes", "predicted_bytes"} - result.deployed.keys():
        raise InvalidInput(f"{folder / RESULT_FILE}: deployed lacks {', '.join(sorted(missing))}; quantize again")
    own = (*find_target(result.target).files_of(result.files), PLAN_FILE, TABLE_FILE, CHECK_FILE)
    check_digests(folder, result, [name for name in own if name in result.files])
    plan = Plan.load(inside_of(folder, PLAN_FILE))
    table = Sensitivity.load(inside_of(folder, TABLE_FILE)) if TABLE_FILE in result.files else None
    check = CheckSet.load(folder) if CHECK_FILE in result.files and result.changed else None
    if plan.target != result.target or plan.layers != result.schemes:
        raise InvalidInput(f"{folder}: {PLAN_FILE} is not the plan of {RESULT_FILE}; quantize again")
    if table is not None and (table.layers != tuple(plan.layers) or table.target != plan.target):
        raise InvalidInput(f"{folder}: {TABLE_FILE} is not the table of {PLAN_FILE}; quantize again")
    return _rendered(result, plan, table, check)


def _with_page(result: Result, path: Path) -> Result:
    names = result.files | {REPORT_FILE: sha256(path)}
    return result.model_copy(update={"files": dict(sorted(names.items()))})


def _rendered(result: Result, plan: Plan, table: Sensitivity | None, check: CheckSet | None) -> str:
    explorer = None if table is None else explorer_of(result, plan, table)
    lines = layers_of(result, table)
    values = {
        "result": result,
        "plan": plan,
        "table": table,
        "verdict": verdict_of(result),
        "key_figures": key_figures(result),
        "rows": comparison_rows(result),
        "plans": other_plans(result),
        "uncovered": uncovered_rows(result),
        "explorer": explorer,
        "in_nats": table is not None and is_in_nats(table),
        "explorer_json": "" if explorer is None else _inlined(asdict(explorer.data)),
        "layers": lines,
        "unit": unit_of_costs(lines),
        "units": words.UNITS,
        "strips": strips_of(lines),
        "samples": samples_of(result, check),
        "command": command_of(result),
        "python": python_of(result, plan),
        "digests": {name: digest for name, digest in result.files.items() if name != REPORT_FILE},
    }
    return rendered("template.html.jinja", values)


def _inlined(value: Any) -> Markup:
    """JSON that no text in it can end: a browser reads `<` and `&` in it as it reads any other character."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII alone
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
