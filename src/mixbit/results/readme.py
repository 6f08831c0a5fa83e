"""README.md of a folder: what the artefact is, how to load it, what it takes and returns, how good it is."""

import re
from pathlib import Path

from mixbit.core import Plan, Port, Ports, clean, find_target, sha256, write_text
from mixbit.results.again import command_of, python_of
from mixbit.results.result import RESULT_FILE, Result

#: The file.
README_FILE = "README.md"
#: How languages of programs are marked in it, by the beginning of their names.
FENCES = {"Python": "python", "C++": "cpp"}
#: Names of classes that are listed.
CLASSES = 20
#: Figures of a network, their titles and forms, as the table has them.
_COLUMNS = {
    "accuracy": ("accuracy", ".2%"),
    "score": ("score", ".4g"),
    "divergence": ("divergence, nats", ".4g"),
    "weight_bytes": ("weights, bytes", ",.0f"),
    "file_bytes": ("files, bytes", ",.0f"),
    "latency_ms": ("latency of one sample, ms", ".3f"),
}


def write_readme(folder: Path, result: Result, sizes: list[tuple[int, ...]], plan: Plan) -> Result:
    """Write README.md; returns the result with it among its files.

    Args:
        folder: Where the artefact is.
        result: Every figure.
        sizes: Of each input, in the example, as the network takes it.
        plan: The one that was deployed.
    """
    write_text(folder / README_FILE, readme(result, sizes, plan))
    files = result.files | {README_FILE: sha256(folder / README_FILE)}
    return result.model_copy(update={"files": dict(sorted(files.items()))})


def readme(result: Result, sizes: list[tuple[int, ...]], plan: Plan) -> str:
    """The text, see `write_readme`."""
    target, ports = find_target(result.target), result.ports or Ports((), ())
    ordered = [tuple(each[axis] for axis in target.input_order(len(each))) for each in sizes]
    sized = [port.of_size(each) for port, each in zip(ports.inputs, ordered, strict=True)]
    parts = [f"# {target.files[0]}", _what(result), "## Load it", _runtime(result)]
    for language, code in target.usage(Ports(tuple(sized), ports.outputs), result.environment).items():
        parts += [
            f"{language}:",
            _block(next(fence for name, fence in FENCES.items() if language.startswith(name)), code),
        ]
    parts += ["## Inputs and outputs", _ports(ports), _free(ports), _classes(result)]
    parts += ["## Preprocessing", clean(result.preprocessing or _unknown(result))]
    parts += ["## Figures", _figures(result), _compared(result)]
    parts += ["## How it was made", *_made(result, plan)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _what(result: Result) -> str:
    quantized = sum(row.scheme != "float" for row in result.layers.values())
    ratio = result.deployed["weight_bytes"] / result.float_["weight_bytes"]
    kept = f"; {result.float_bytes:,.0f} bytes of other weights stay in float" if result.float_bytes else ""
    return (
        f"A network for {result.target}: {quantized} of {len(result.layers)} layers are quantized, and their weights "
        f"take {ratio:.3f} of the bytes of float32{kept}. [plan.json](plan.json) says how each layer is stored, "
        "[result.json](result.json) holds every figure, and `mixbit verify` and `mixbit bench` take this folder."
    )


def _runtime(result: Result) -> str:
    files = " and ".join(f"`{name}`" for name in find_target(result.target).files_of(result.files))
    return (
        f"Of this folder your program needs {files} alone; all else is for people and for `mixbit verify`. "
        f"It was verified in {result.environment['runtime']}, with the settings below. Run the lines in this folder."
    )


def _ports(ports: Ports) -> str:
    rows = [("input", port) for port in ports.inputs] + [("output", port) for port in ports.outputs]
    return _table(
        ("", "name", "type", "shape"), [(kind, _code(port.name), port.dtype, _shape(port)) for kind, port in rows]
    )


def _shape(port: Port) -> str:
    return _code(f"[{', '.join(map(str, port.shape))}]")


def _free(ports: Ports) -> str:
    named = any(isinstance(size, str) for port in ports.inputs for size in port.shape)
    return "Dimensions with names are of any size; `batch` is the number of samples." if named else ""


def _classes(result: Result) -> str:
    """Names of the classes, where they are known and the one output is an answer among them."""
    if not result.classes or len(result.outputs) > 1:
        return ""
    names = ", ".join(_code(name) for name in result.classes[:CLASSES])
    more = "" if len(result.classes) <= CLASSES else f", and so on; `classes` of {RESULT_FILE} has all"
    return f"The {len(result.classes):,} classes, from 0 on: {names}{more}."


def _unknown(result: Result) -> str:
    data = "the function given as DATA" if result.command else "the calling program"
    return f"Not known here: {data} prepared the inputs. Prepare yours in the same way."


def _figures(result: Result) -> str:
    networks = {"float": result.float_, "simulated": result.simulated, "deployed": result.deployed}
    names = [name for name in _COLUMNS if any(name in figures for figures in networks.values())]
    rows = [
        (network, *(format(figures[name], _COLUMNS[name][1]) if name in figures else "" for name in names))
        for network, figures in networks.items()
    ]
    return _table(("network", *(_COLUMNS[name][0] for name in names)), rows)


def _compared(result: Result) -> str:
    figures = result.deployed
    agreement = f"top answers agree on {figures['agreement']:.2%}, " if "agreement" in figures else ""
    return (
        f"On {figures['num_samples']:,.0f} samples, against the simulation: {agreement}outputs differ by "
        f"{figures['relative_rms']:.2%} of their spread. {result.speed[0].upper()}{result.speed[1:]}, on "
        f"{result.environment['processor'] or result.environment['machine']}."
    )


def _made(result: Result, plan: Plan) -> list[str]:
    code = _block("", command_of(result)) if result.command else _block("python", python_of(result, plan))
    versions = [f"{name} {result.environment[name]}" for name in ("mixbit", "python", "torch")]
    chosen = clean(result.chosen)
    return [
        code,
        f"{chosen[0].upper()}{chosen[1:]}.",
        f"Versions: {', '.join([*versions, result.environment['runtime']])}.",
    ]


def _block(language: str, code: str) -> str:
    """A block of code, which no line of its own ends."""
    longest = max(map(len, re.findall(r"`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{clean(code)}\n{fence}"


def _code(text: str) -> str:
    """Text in a cell of a table, as it is."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    inside = clean(text).replace("|", "\\|")
    return f"{fence}{inside}{fence}" if len(fence) == 1 else f"{fence} {inside} {fence}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
