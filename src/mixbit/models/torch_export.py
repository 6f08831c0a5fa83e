"""net.pt2: an archive of torch.export.save, of which nothing is unpickled.

torch's own loader unpickles the example that an archive holds, and weights where they are stored so. Here the archive
is read without its example, and refused where weights or constants are pickles. Sizes of any value stand in it as
formulas, which torch hands to sympy to evaluate; they are refused where they are more than arithmetic.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from mixbit.core import InvalidInput, UnsupportedModel, file_errors, quoted, reason_of, users_code
from mixbit.models.load import LoadedModel, ModelForm

_SAMPLES, _CONFIGS, _PROGRAMS = "/data/sample_inputs/", ("weights_config.json", "constants_config.json"), "/models/"
#: What a formula of sizes is made of: symbols, numbers, and functions of torch and sympy, which begin with a capital.
_FORMULA = re.compile(
    r"('?[suz]\d+'?|positive=|integer=|nonnegative=|\d+(\.\d+)?|-?int_oo|oo|[A-Z][A-Za-z]*|==|[-+*/%(),<>=\s])*"
)
#: Operator -> the place of the argument that says whether it trains.
_TRAINING = {
    "aten.dropout.default": 2, "aten.feature_dropout.default": 2, "aten.alpha_dropout.default": 2,
    "aten.batch_norm.default": 5, "aten.instance_norm.default": 5, "aten.rrelu.default": 3,
}  # fmt: skip
_SEED, _FEW, _TOLERANCE = 0, 2, 1e-4
_WAY_OUT = (
    "export it with a batch of any size: torch.export.export(model, inputs, dynamic_shapes={name: {0: "
    "torch.export.Dim.DYNAMIC} for every input})"
)


def load(spec: str) -> LoadedModel:
    """The program of the archive as a module.

    Raises:
        InvalidInput: the file is no archive of torch.export, holds pickles, or is of another version of torch.
        UnsupportedModel: the program is for one batch size alone, or was exported as it trains.
    """
    path = Path(spec)
    with file_errors(f"MODEL {path}: cannot be read"):
        content = path.read_bytes()
    program = _program(path, content)
    _check_mode(path, program.graph)
    placeholders = [
        node for node in program.graph.find_nodes(op="placeholder") if node.name in program.graph_signature.user_inputs
    ]
    traced = program.module(check_guards=False)
    module = fx.GraphModule(traced, traced.graph)  # torch's own refuses eval()
    shapes = [node.meta.get("val") for node in placeholders]
    tensors = [value for value in shapes if isinstance(value, Tensor) and value.ndim]
    if any(isinstance(value.shape[0], int) for value in tensors):
        _check_free_batch(path, module, shapes, program.call_spec.in_spec)
    is_fixed = all(isinstance(size, int) for value in tensors for size in value.shape[1:])
    given = [each for part in program.call_spec.in_spec.children() for each in part.children()]
    is_plain = len(tensors) == len(shapes) == len(given) and all(each.is_leaf() for each in given)
    return LoadedModel(module.eval(), example=tuple(_example(shapes, _FEW)) if is_fixed and is_plain else None)


def _check_mode(path: Path, graph: fx.Graph) -> None:
    """Raise UnsupportedModel where the program was exported as it trains: eval() does not reach what is traced."""
    for node in graph.nodes:
        place = _TRAINING.get(str(node.target))
        if place is not None and len(node.args) > place and node.args[place] is True:
            raise UnsupportedModel(
                f"MODEL {path}: {quoted(node.name)} drops at random, or normalises by the batch; call model.eval() and "
                "export it again"
            )


def _program(path: Path, content: bytes) -> Any:
    """The exported program, without the example that was stored with it."""
    try:
        archive = zipfile.ZipFile(BytesIO(content))
    except zipfile.BadZipFile as error:
        raise InvalidInput(f"MODEL {path}: is no archive of torch.export.save, or part of one ({error})") from error
    names = archive.namelist()
    if not any(_PROGRAMS in name for name in names):
        raise InvalidInput(
            f"MODEL {path}: holds no program of torch.export.save as torch {torch.__version__} writes it; save it "
            "again with this version, or give the network as a function in Python"
        )
    with users_code(lambda error: InvalidInput(f"MODEL {path}: is damaged ({reason_of(error)}); export it again")):
        _check_contents(path, archive)
    stripped = BytesIO()
    with zipfile.ZipFile(stripped, "w") as copy:
        for name in names:
            copy.writestr(name, b"" if _SAMPLES in name else archive.read(name))
    stripped.seek(0)
    again = f"export and save it again with torch {torch.__version__}"
    with users_code(lambda error: InvalidInput(f"MODEL {path}: torch refuses it: {reason_of(error)}; {again}")):
        return torch.export.load(stripped)


def _check_contents(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise InvalidInput where the archive holds pickles that would be loaded, or formulas that are none."""
    for name in archive.namelist():
        if name.endswith(_CONFIGS):
            for key, entry in json.loads(archive.read(name)).get("config", {}).items():
                if entry.get("use_pickle") or entry.get("tensor_meta") is None:
                    raise InvalidInput(
                        f"MODEL {path}: {quoted(key)} is stored as a pickle, which can run code; make it a plain dense "
                        "tensor and save again, or give the network as a function in Python"
                    )
        if _PROGRAMS in name and name.endswith(".json"):
            for formula in _formulas(json.loads(archive.read(name))):
                if not _FORMULA.fullmatch(formula):
                    raise InvalidInput(f"MODEL {path}: {quoted(formula)} is no formula of sizes; export it again")


def _formulas(value: Any) -> Iterator[str]:
    """All texts that torch gives to sympy."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "expr_str" and isinstance(each, str):
                yield each
            elif key == "range_constraints" and isinstance(each, dict):
                yield from each
            yield from _formulas(each)
    elif isinstance(value, list):
        for each in value:
            yield from _formulas(each)


def _example(values: list[Any], samples: int) -> list[Any]:
    """Seeded inputs: normal numbers, zeros and ones of integers; numbers as they were exported."""
    generator, made = torch.Generator().manual_seed(_SEED), []
    for value in values:
        if not isinstance(value, Tensor):
            made.append(value)
            continue
        sizes = [size if isinstance(size, int) else _FEW for size in value.shape]
        if sizes:
            sizes[0] = samples
        is_float = value.dtype.is_floating_point
        drawn = torch.randn(sizes, generator=generator) if is_float else torch.randint(0, 2, sizes, generator=generator)
        made.append(drawn.to(value.dtype))
    return made


def _check_free_batch(path: Path, module: fx.GraphModule, values: list[Any], spec: pytree.TreeSpec) -> None:
    """Raise UnsupportedModel unless the program does for more samples, each alone, what it does for its own number.

    `spec` says how the values lie in arguments.
    """
    count = next(value.shape[0] for value in values if isinstance(value, Tensor) and isinstance(value.shape[0], int))
    inputs = _example(values, 2 * count)
    halves = [
        [each[start : start + count] if isinstance(each, Tensor) and each.ndim else each for each in inputs]
        for start in (0, count)
    ]
    failure = f"MODEL {path}: the program is exported for {count} samples alone; {_WAY_OUT}"
    with users_code(lambda error: UnsupportedModel(f"{failure} ({reason_of(error)})")), torch.no_grad():
        whole, *parts = (_called(module, each, spec) for each in (inputs, *halves))
    for got, *each in zip(whole, *parts, strict=True):
        want = torch.cat(each) if each[0].ndim else each[0]
        if got.shape != want.shape or not torch.allclose(got, want, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise UnsupportedModel(failure)


def _called(module: fx.GraphModule, values: list[Any], spec: pytree.TreeSpec) -> list[Tensor]:
    args, options = pytree.tree_unflatten(values, spec)
    return pytree.tree_leaves(module(*args, **options))


FORM = ModelForm("net.pt2", lambda spec: spec.endswith(".pt2"), load)
