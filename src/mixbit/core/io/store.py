"""Unfinished work in files, with the question that it answers; digests of values, and the machine that a run ran on.

A run resumes where the question is the same. A digest stands for values that are too large to store in it.
"""

import hashlib
import inspect
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import methodcaller
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import scipy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.fx import GraphModule

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import file_errors, hidden, read_bytes, write_bytes, write_text
from mixbit.core.io.json_files import MOST_JSON, json_of
from mixbit.core.io.tensors import safetensors_bytes, with_metadata
from mixbit.core.io.versions import package_version

_log = logging.getLogger("mixbit")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata; raises InvalidInput for another file."""
    safetensors_bytes(path)  # refuses what the library would take
    try:
        with file_errors(f"{path}: cannot be read"), safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 no dict
    except (AttributeError, RuntimeError, SafetensorError, TypeError, ValueError) as error:  # types torch has not
        raise InvalidInput(f"{path}: not a safetensors file ({error})") from error


#: Of a value whose numbers may be numpy's, as arguments may.
_json = partial(json.dumps, default=methodcaller("item"))


class Stored(NamedTuple):
    """Tensors by name, on the CPU, and what was noted beside them."""

    tensors: dict[str, Tensor]
    notes: Any


class Store:
    """Finished steps of a run, each in the file `<name>.safetensors` of a folder with the question that it answers.

    A question is a JSON value that names all that a step depends on. Files appear whole or not at all. The folder is
    made where it is missing; None stores nothing, and what is no path raises InvalidInput.
    """

    def __init__(self, folder: str | Path | None) -> None:
        if folder is not None and (not isinstance(folder, str | Path) or not str(folder)):
            raise InvalidInput(f"folder={folder!r}: give the path of a folder, or None to keep nothing")
        self.folder = None if folder is None else Path(folder)
        self._taken_up = False

    def put(self, name: str, question: Any, tensors: Mapping[str, Tensor], notes: Any = None) -> None:
        """Replace what is stored under the name; raises InvalidInput where it cannot be written."""
        if (path := self._path(name)) is not None:
            copies = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
            metadata = {"question": _json(question), "notes": _json(notes)}
            metadata["digest"] = _content(copies, metadata)
            write_bytes(path, with_metadata(safetensors.torch.save(copies), metadata))

    def get(self, name: str, question: Any) -> Stored | None:
        """What is stored under the name for this question, or None; raises InvalidInput where the file is another's.

        The folder is made here already: work that cannot be stored should not begin.
        """
        answered, stored = self._read(name) or (None, None)
        if answered != json.loads(_json(question)):
            return None
        if not self._taken_up:
            self._taken_up = True
            _log.info("finished work in %s is taken up: an earlier run was interrupted", self.folder)
        return stored

    def check(self, name: str, question: Mapping[str, Any]) -> None:
        """Raise InvalidInput where what is stored under the name has another value for one of these fields."""
        if (read := self._read(name)) is None:
            return
        fields = json.loads(_json(question))
        if not isinstance(read[0], dict) or any(read[0].get(field) != value for field, value in fields.items()):
            raise InvalidInput(
                f"{self._path(name)}: the checkpoint of another training (graph, data or "
                "settings differ); delete it, choose another folder, or give --force to throw it away"
            )

    def clear(self) -> None:
        """Remove what is stored, and the folder where it holds nothing else: it may be anyone's."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in self.folder.glob("*.safetensors"):
            with suppress(InvalidInput):
                if "question" in read_tensors(path)[1]:
                    path.unlink()
            hidden(path, "new").unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        with file_errors(f"{self.folder}: cannot be made", "; choose another folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{name}.safetensors"

    def _read(self, name: str) -> tuple[Any, Stored] | None:
        """Question and answer."""
        if (path := self._path(name)) is None or not path.exists():
            return None
        try:
            tensors, metadata = read_tensors(path)
            if metadata.get("digest") != _content(tensors, metadata):
                raise InvalidInput("its content is not what was written")
            return json_of(metadata["question"], "question"), Stored(tensors, json_of(metadata["notes"], "notes"))
        except (KeyError, InvalidInput) as error:
            raise InvalidInput(f"{path}: holds nothing to resume from ({error}); delete it") from error


def _content(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The digest of what a file of the store holds: a bit that changed would be taken up without a word."""
    return digest(sorted(tensors.items()), metadata.get("question"), metadata.get("notes"))


class Journal:
    """A file with one line of JSON for what its scores depend on, then one for each score; a line cut short is dropped.

    Without a path scores stay in memory. Raises InvalidInput for no journal, or one of something else, unless forced.
    """

    def __init__(self, path: Path | None = None, about: dict[str, Any] | None = None, *, force: bool = False) -> None:
        self.path, self.about = path, dict(about or {})
        self.scores: dict[tuple[str, ...], float] = {}
        self._unsaid = 0
        if path is None:
            return
        try:
            text = read_bytes(path, MOST_JSON) if path.exists() else b""
            first, *lines = [
                json_of(line, f"line {number}") for number, line in enumerate(text.split(b"\n")[:-1], 1)
            ] or [None]
        except (OSError, InvalidInput) as error:
            raise InvalidInput(f"{path}: not a journal of trials ({error}); delete it") from error
        if first != json.loads(_json(self.about)):
            if lines and not force:
                known = first if isinstance(first, dict) else {}
                other = ", ".join(name for name, value in self.about.items() if known.get(name) != value)
                raise InvalidInput(
                    f"{path}: holds trials of another run (another {other or 'record'}; data that a loader shuffles is "
                    "the same where it is seeded); delete it, or give --force to drop them"
                )
            lines = []
        for number, line in enumerate(lines, 2):
            plan, score = (line.get("plan"), line.get("score")) if isinstance(line, dict) else (None, None)
            fits = isinstance(plan, list) and all(isinstance(part, str) for part in plan)
            if plan is None or not isinstance(score, float | int) or not fits or line != self._line(plan, score):
                raise InvalidInput(f"{path}: line {number} holds no plan and score; delete the file")
            self.scores[tuple(plan)] = score
        self._unsaid = len(self.scores)

    def score_of(self, plan: Sequence[str], score: Callable[[], float]) -> float:
        """The score of a plan, given as its schemes in order: from the file, or else what the function returns."""
        key = tuple(plan)
        if key in self.scores and self._unsaid:
            _log.info("%d tried plans in %s are taken up: an earlier run was interrupted", self._unsaid, self.path)
            self._unsaid = 0
        if key not in self.scores:
            self.scores[key] = score()
            if self.path is not None:
                self._write(self.path)
        return self.scores[key]

    def _write(self, path: Path) -> None:
        with file_errors(f"{path.parent}: cannot be made", "; choose another folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
        lines = [self.about, *(self._line(plan, score) for plan, score in self.scores.items())]
        write_text(path, "".join(_json(line) + "\n" for line in lines))

    def _line(self, plan: Sequence[str], score: float) -> dict[str, Any]:
        """What is written of a score; the digest shows one that changed since."""
        return {"plan": [*plan], "score": score, "digest": digest(json.dumps([self.about, [*plan], score]))}


def digest(*values: Any) -> str:
    """16 hex digits that tell these values from others: tensors, functions, objects, and collections of them.

    A function or object is known by its source and the values that it holds: the arguments of a partial, the attributes
    of an object, the defaults of a function and what it takes from the function around it. Other functions that it
    calls, and global values, are not looked into. Raises InvalidInput for values that are nested too deeply.
    """
    try:
        text = re.sub(r" at 0x[0-9a-f]+", "", "\n".join(_described(value, ()) for value in values))
    except RecursionError:
        names = ", ".join(getattr(value, "__name__", type(value).__name__) for value in values)
        raise InvalidInput(f"{names}: holds values that are nested too deeply; give a plain function") from None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(value: Any, around: tuple[int, ...]) -> str:
    """The value as text; `around` are the ids of those that hold it, which it may hold in turn."""
    held: Sequence[Any] = ()
    match value:
        case Tensor():
            text = f"{value.dtype}{list(value.shape)}{_numbers(value)}"
        case np.ndarray():
            text = f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
        case Mapping():
            text, held = "mapping", [*value.items()]
        case Sequence() if not isinstance(value, str | bytes | range):
            text, held = "sequence", value
        case set() | frozenset():
            text, held = "set", sorted(value, key=repr)
        case GraphModule():
            text, held = value.code, [value.state_dict()]
        case partial():
            text, held = "partial", [value.func, value.args, value.keywords]
        case MethodType():
            text, held = _source(value), [value.__self__]
        case FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            text, held = _source(value), [cells, value.__defaults__, value.__kwdefaults__]
        case type() | BuiltinFunctionType() | ModuleType():
            text = _source(value)
        case _ if value.__getstate__() is None and not callable(value):
            text = repr(value)
        case _:
            text, held = _source(type(value)), [value.__getstate__()]
    inside = (*around, id(value))
    parts = ("..." if id(part) in inside else _described(part, inside) for part in held)
    return f"{text}({', '.join(parts)})" if held else text


def _numbers(tensor: Tensor) -> str:
    """A digest of its numbers; nothing on `meta`, whose numbers are in files."""
    if tensor.is_meta:
        return ""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(flat.data).hexdigest()


def _source(code: Any) -> str:
    """Its text, or its name where there is none to read."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return getattr(code, "__qualname__", code.__name__)


def environment() -> dict[str, str]:
    """What a run ran on: the processor and the versions of packages."""
    processor = platform.processor()
    with suppress(OSError):
        names = re.findall(r"^model name.*?:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        processor = names[0].strip() if names else ""
    return {
        "mixbit": package_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "processor": processor,
        "cores": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
    }
