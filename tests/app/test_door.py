"""What starts without numpy and torch: help, version, lists, schemas, completion; and mistakes of new users."""

import json
import re
import subprocess
import sys

import pytest
import typer

from mixbit.app import main as cli
from mixbit.app.commands.options import HEADINGS
from mixbit.app.schemas import SCHEMAS, schema_text
from mixbit.app.schemas.generate import schemas
from mixbit.core import (
    METHOD_PLACES,
    RESOURCES,
    TARGETS,
    Plan,
    Sensitivity,
    described_methods,
    described_targets,
    find_target,
)
from mixbit.pipeline.settings import METHODS
from mixbit.recipes import RECIPES
from mixbit.targets.openvino import TYPES
from tests.searches.test_front import random_table

#: Packages that take long to import.
HEAVY = {
    "torch",
    "numpy",
    "scipy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "openvino",
    "sympy",
    "matplotlib",
    "transformers",
}
COMMANDS = (
    "quantize", "measure", "search", "front", "apply", "verify", "bench", "study", "demo", "list", "schema", "plan",
)  # fmt: skip
LIGHT = [
    ["--version"],
    ["--help"],
    ["plan", "diff", "--help"],
    ["plan", "export", "--help"],
    *([name, "--help"] for name in COMMANDS),
    *(["list", name, "--json"] for name in ("targets", *METHOD_PLACES, "budgets", "schemas")),
    *(["schema", name] for name in SCHEMAS),
]


def test_help_version_lists_and_schemas_load_nothing_heavy():
    code = f"""
import io, json, sys
from contextlib import redirect_stdout, suppress
from mixbit.app import main
loaded = {{}}
for words in {LIGHT}:
    sys.argv = ["mixbit", *words]
    with redirect_stdout(io.StringIO()), suppress(SystemExit):
        main.main()
    loaded[" ".join(words)] = sorted({HEAVY} & set(sys.modules))
print(json.dumps(loaded))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(ran.stdout)
    assert len(loaded) == len(LIGHT)
    assert {words: modules for words, modules in loaded.items() if modules} == {}


def test_lists_read_from_the_source_are_what_is_loaded(run):
    kinds = {**METHODS, "recipes": RECIPES}
    assert {name: methods.place for name, methods in kinds.items()} == METHOD_PLACES
    for name, methods in kinds.items():
        texts = {each: (method.__doc__ or "").strip().partition("\n")[0] for each, method in methods.items()}
        assert described_methods(METHOD_PLACES[name]) == texts
        assert list(described_methods(METHOD_PLACES[name])) == list(methods)
        _, out, _ = run("list", name, "--json")
        assert json.loads(out) == texts
    assert find_target("openvino").weight_bits == tuple(TYPES)
    for name, text in described_targets().items():
        target = find_target(name)
        widths = [", ".join(map(str, bits)) for bits in (target.weight_bits, target.input_bits)]
        assert text == f"weights {widths[0]} bits, inputs {widths[1]} or float: {target.note}"
    assert described_targets().keys() == TARGETS.keys()


def test_budgets_are_listed(run):
    code, out, _ = run("list", "budgets", "--json")
    assert (code, json.loads(out)) == (0, RESOURCES)


def test_help_has_headings_of_options_that_there_are(run):
    _, out, _ = run("quantize", "--help")
    assert all(f"─ {heading} ─" in out for heading in HEADINGS)
    text, options = re.sub(r"\W+", " ", out), typer.main.get_command(cli.app).commands["quantize"].params
    for names in HEADINGS.values():
        for name in names:
            (option,) = [each for each in options if each.name == name]
            assert option.opts[0].strip("-").replace("-", " ") in text


@pytest.mark.parametrize("words", ["report none", "verify none", "bench none"])
def test_a_folder_that_is_not_there_is_told_before_torch_is_loaded(words):
    code = f"""
import sys
from contextlib import suppress
from mixbit.app import main
sys.argv = ["mixbit", *{words.split()}]
with suppress(SystemExit):
    main.main()
print(*{HEAVY} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "\n"
    assert ran.stderr == "mixbit: none: no such folder; give the --out of mixbit quantize\n"


def test_schemas_are_those_of_the_types_that_read_the_files(run):
    assert schemas().keys() == SCHEMAS.keys()
    for name, text in schemas().items():
        assert schema_text(name) == text, "run python -m mixbit.app.schemas.generate"
        code, out, _ = run("schema", name)
        assert (code, out) == (0, text)
        schema = json.loads(text)
        assert schema["properties"]["version"]["const"] in (1, 2)
        assert schema["$schema"].startswith("https://json-schema.org/")


def test_schemas_have_the_keys_of_files_that_are_written(tmp_path):
    table = random_table(4, 3, seed=1)
    table.save(tmp_path / "sensitivity.json")
    table.plan_like(0, "one").save(tmp_path / "plan.json")
    for name, read in (("sensitivity", Sensitivity), ("plan", Plan)):
        stored, schema = json.loads((tmp_path / f"{name}.json").read_text()), json.loads(schema_text(name))
        assert stored.keys() <= schema["properties"].keys()
        assert set(schema["required"]) <= stored.keys()
        assert schema["additionalProperties"] is False
        read.load(tmp_path / f"{name}.json")


def test_the_version_is_that_of_the_package(run):
    code, out, _ = run("--version")
    assert code == 0
    assert re.fullmatch(r"mixbit \d+\.\d+\.\d+\S*\n", out)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("mixbit quantize --target op", ["openvino"]),
        ("mixbit measure --metric fis", ["fisher"]),
        ("mixbit apply --rounding br", ["brecq"]),
        ("mixbit quantize --budget mean", ["mean_bits="]),
        ("mixbit list sch", ["schemas"]),
        ("mixbit plan export --to ai", ["aimet", "ai_edge_quantizer"]),
        ("mixbit schema fr", ["front"]),
        ("mixbit quan", ["quantize"]),
    ],
)
def test_a_shell_completes_names(monkeypatch, capsys, words, offered):
    monkeypatch.setenv("_MIXBIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setattr(sys, "argv", ["mixbit"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.split() == offered


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("quantise", "No such command 'quantise'. Did you mean 'quantize'?; see mixbit --help"),
        ("quantize net.py:model", "Missing option '--data'; see mixbit quantize --help"),
        ("quantize --hlep", "No such option: --hlep (Possible options: --help, --lr); see mixbit quantize --help"),
        ("plan diff a.json", "Missing argument 'B'; see mixbit plan diff --help"),
        ("list metric", "list 'metric' is unknown (did you mean metrics?)"),
        ("schema plans", "schema 'plans' is unknown (did you mean plan?)"),
        ("verify", "Missing argument 'DIR'; see mixbit verify --help"),
    ],
)
def test_mistakes_are_answered_with_the_way_out(run, words, message):
    code, out, err = run(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"mixbit: {message}")


def test_no_command_prints_the_help(run):
    code, _, err = run()
    assert code == 2
    assert err.startswith("mixbit: give a command") or "give a command" in err
    assert run("--help")[0] == 0
