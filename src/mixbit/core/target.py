"""Targets: what a runtime stores and executes, and how its files are written and run; one file each in `targets/`."""

import ast
import dataclasses
import importlib
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mixbit.core.errors import InvalidInput, TargetMismatch, pick
from mixbit.core.io.files import scratch_folder
from mixbit.core.io.methods import read_options
from mixbit.core.ports import Ports
from mixbit.core.scheme import Format, Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Files of the room `targets` that hold no target, beside those whose names begin with `_`.
VERBS = ("export", "verify", "latency", "time_plans", "timed", "faster", "size", "capabilities")
_ROOM = Path(__file__).parents[1] / "targets"
#: Name -> module that ends with its TARGET, whose widths and note are literals.
TARGETS = {
    file.name: f"mixbit.targets.{file.name}"
    for file in pkgutil.iter_modules([str(_ROOM)])
    if not file.name.startswith("_") and file.name not in VERBS
}


#: What lists of targets tell.
_TOLD = ("weight_bits", "input_bits", "note")


def described_targets() -> dict[str, str]:
    """Name -> the widths that it stores and executes, and its note, read from the source: it is not run."""
    texts = {}
    for name in TARGETS:
        tree = ast.parse((_ROOM / f"{name}.py").read_text(encoding="utf-8"))
        (call,) = (each.value for each in tree.body if isinstance(each, ast.Assign) and _names(each) == ["TARGET"])
        given = call.keywords if isinstance(call, ast.Call) else []
        facts = {each.arg: ast.literal_eval(each.value) for each in given if each.arg in _TOLD}
        weights, inputs = (", ".join(map(str, facts[bits])) for bits in ("weight_bits", "input_bits"))
        texts[name] = f"weights {weights} bits, inputs {inputs} or float: {facts['note']}"
    return texts


def _names(assigned: ast.Assign) -> list[str]:
    return [each.id for each in assigned.targets if isinstance(each, ast.Name)]


@dataclass(frozen=True)
class StoredWeight:
    """How the artefact holds one layer's weight: bytes with scales, and in which types."""

    weight_bytes: int
    types: str


@dataclass(frozen=True)
class Runner:
    """An artefact, loaded by its runtime.

    Attributes:
        run: (one array per graph input) -> one array per output.
        executed: () -> layer -> operator and precision that the runtime chose, read from the runtime.
        environment: The runtime's name and version, and its settings.
        profile: (arrays as for `run`) -> for each operator that the runtime executes, in order, the layer that it is
            of, "" for none, and its milliseconds, read from the runtime while the files are there; None where the
            runtime does not tell.
        names: Those of the inputs and of the outputs, as the file holds them; none where it holds none.
        note: What users of the file must know of how it runs, a sentence; "" where nothing.
    """

    run: "Callable[[list[NDArray[Any]]], list[NDArray[Any]]]"
    executed: Callable[[], dict[str, str]]
    environment: dict[str, str]
    profile: "Callable[[list[NDArray[Any]]], list[tuple[str, float]]] | None" = None
    names: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    note: str = ""


#: (folder, names of tensors, and whether a layer's operator adds a bias) -> (arrays as for `Runner.run`) -> name ->
#: tensor, for those that the file holds, see `mixbit.targets._layers.Watched`.
LoadTensors = Callable[[Path, list[tuple[str, bool]]], "Callable[[list[NDArray[Any]]], dict[str, NDArray[Any]]]"]


class Load(Protocol):
    """Open the files in a folder with the runtime.

    A call gives the folder, and the captured graph of the user's model where the target needs it. `batch_size` fixes
    the first dimension of every input; `default_settings` are the runtime's own, not those that make it compute as the
    simulation does. InvalidInput: no runtime or file; TargetMismatch: the file does not load, or take the inputs.
    """

    def __call__(  # noqa: D102 the class says it
        self, folder: Path, graph: Any = None, /, *, batch_size: int | None = None, default_settings: bool = False
    ) -> Runner: ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime: what it stores and executes, and how its files are written, read and run.

    Attributes:
        name: As in `--target`.
        files: Names of the files that hold the network; the runtime loads the first.
        more_files: Names of files beside them that hold weights where these are too many for one file.
        most_bytes: Of weights in its one file, whose offsets or messages end there; None where weights may be any.
        weight_bits: Widths it stores.
        input_bits: Widths of layer inputs it executes.
        default_choices: The schemes offered when none are asked for: the widths that every target stores, in int8.
        dynamic_choices: The schemes offered where ranges are to be taken at run time and none are asked for.
        integer_layers: Kinds of layers' operators, as `conv2d`, that run in integers where their input is quantized;
            others run in float.
        missing_layers: Kinds that the target has no operator for.
        integer_operators: Of `add`, `cat`, `average_pool` and `matmul`, those that run in integers on quantized inputs.
        adds_into_layers: Whether a convolution that feeds an addition alone computes it too, without rounding between.
        quantized_outputs: Kinds of layers' operators, as `conv2d`, that run in integers only where their output is
            quantized too.
        rounds_shifted: Whether activations become integers by round(x / scale + zero point), not by
            round(x / scale) + zero point: ties, which go to the even integer, differ at odd zero points.
        zero_points: Whether activations of static range may take zero points; else their integers are signed where the
            tensor has numbers below 0.
        halves: (layer, its operator, format of its weight) -> how an operator on integers rounds its sums to those of
            its output, see `mixbit.quantization.sums.whole_numbers`; None where as other activations.
        adds_biases: Whether a layer without a bias may get one, as corrections of biases give it.
        reads_alone: Whether a static range rounds what layers read alone, and other operators read the same tensor in
            float; else all that read it read it rounded.
        needs_graph: Whether `load` needs the captured graph.
        writes_by_layer: Whether `write` holds one weight at a time, so that it takes networks larger than memory.
        input_order: Number of an input's dimensions -> the order in which the file has them. `Runner.run` takes inputs
            as the network does.
        note: What happens to each width when the file is loaded, and what it stores beside them, for people.
        lacks: Scheme of these widths -> what the runtime lacks for it, for people; None where nothing.
        lacks_for: (layer, scheme) -> what the runtime lacks for that layer in a scheme that it runs for others, for
            people; None where nothing. The layer stays in float instead.
        weight_bytes: (shape, axis, format) -> bytes in the file for that weight and its scales; a guess where
            `layer_bytes` or `coded_bytes` knows better.
        layer_bytes: (layer, scheme) -> the same, where it depends on the operators that read the weight, or on the
            input's format; None where it does not.
        coded_bytes: (layer, its integers in the shape of the weight, scheme) -> the same, where it depends on the
            numbers; None where it does not.
        bytes_tolerance: Share by which a layer's bytes may differ from those predicted, and a number of bytes by which
            they may, however few they are.
        require: Raises InvalidInput where the runtime is not installed.
        write: (what `quantize` returned, folder) -> writes `files`, and `more_files` where they are needed; raises
            UnsupportedModel where the runtime cannot express the model.
        load: See `Load`.
        stored: Folder -> layer -> bytes and types of its weight and scales, read from the file.
        program: Python that loads the file in the folder argv[1] and runs it on the arrays in argv[2] by the runtime
            alone, see `try_apart`; empty where nothing but Python runs the file.
        file_figures: What the files tell of the device's resources, as `flash_bytes` of OF_FILES.
        read_figures: Folder -> these.
        check_files: Folder -> raises InvalidInput or TargetMismatch where the files are missing or name others.
        load_tensors: Opens the file with tensors inside as its outputs; None where it cannot.
        exact: The `environment` of the runner that was verified -> how a program loads the files with its settings, for
            people.
        overflows: Whether, on this processor, the runtime's sums of products with 8-bit weights overflow.
        usage: (ports with sizes, the `environment` of the runner that was verified) -> language, as README.md names it,
            -> ten lines at most that run the file in it with these settings.
    """

    name: str
    files: tuple[str, ...]
    weight_bits: tuple[int, ...]
    input_bits: tuple[int, ...]
    more_files: tuple[str, ...] = ()
    most_bytes: int | None = None
    default_choices: tuple[str, ...] = ("w2a8", "w3a8", "w4a8", "w6a8", "w8a8")
    dynamic_choices: tuple[str, ...] = ()
    integer_layers: frozenset[str] = frozenset()
    missing_layers: frozenset[str] = frozenset()
    integer_operators: frozenset[str] = frozenset()
    adds_into_layers: bool = False
    quantized_outputs: frozenset[str] = frozenset()
    rounds_shifted: bool = False
    zero_points: bool = True
    halves: Callable[[Any, Any, Format], str | None] = lambda *_: None
    adds_biases: bool = True
    reads_alone: bool = False
    needs_graph: bool = False
    writes_by_layer: bool = False
    input_order: Callable[[int], tuple[int, ...]] = lambda rank: tuple(range(rank))
    note: str
    lacks: Callable[[Scheme], str | None]
    lacks_for: Callable[[Any, Scheme], str | None] = lambda *_: None
    weight_bytes: Callable[[tuple[int, ...], int, Format | None], int]
    layer_bytes: Callable[[Any, Scheme], int] | None = None
    coded_bytes: "Callable[[Any, NDArray[Any], Scheme], int] | None" = None
    bytes_tolerance: tuple[float, int] = (0.01, 0)
    require: Callable[[], object]
    write: Callable[[Any, Path], None]
    load: Load
    stored: Callable[[Path], dict[str, StoredWeight]]
    program: str = ""
    file_figures: tuple[str, ...] = ()
    read_figures: Callable[[Path], Mapping[str, int]] = lambda _: {}
    check_files: Callable[[Path], object] = lambda _: None
    load_tensors: LoadTensors | None = None
    exact: Callable[[Mapping[str, str]], str] = lambda _: ""
    overflows: Callable[[], bool] = lambda: False
    usage: Callable[[Ports, Mapping[str, str]], dict[str, str]] = lambda *_: {}

    def try_apart(self, folder: Path, arrays: "Sequence[NDArray[Any]]") -> None:
        """Load a new artefact and run it once, on one array per graph input, in a process of its own.

        Raises as `check_files` does, and TargetMismatch where the runtime ends that process, as it would have ended
        this one. Errors that it reports are left to `load`.
        """
        self.check_files(folder)
        import numpy as np

        if not (self.program and sys.executable):
            return
        with scratch_folder() as scratch:
            file = scratch / "inputs.npz"
            np.savez(file, *[array.transpose(self.input_order(array.ndim)) for array in arrays])
            # -P: no module of the current folder, which may be that of the artefact, is imported
            words = [sys.executable, "-P", "-c", self.program, str(folder), str(file)]
            status = subprocess.run(words, capture_output=True, check=False).returncode
        if status < 0:
            raise TargetMismatch(
                f"{folder / self.files[0]}: {self.name} dies of it ({signal.strsignal(-status)}); take other choices "
                f"or another target, or install another version of {self.name}"
            )

    def files_of(self, names: Collection[str]) -> list[str]:
        """Of a folder with files of these names, those that hold the network: all `files`, and `more_files` there."""
        return [*self.files, *(name for name in self.more_files if name in names)]

    def in_file(self, ports: Ports) -> Ports:
        """The inputs and outputs of a network as its file has them."""
        inputs = (port.in_order(self.input_order(len(port.shape))) for port in ports.inputs)
        return dataclasses.replace(ports, inputs=tuple(inputs))

    @contextmanager
    def written(self, simulated: Any, graph: Any, batch_size: int | None = None) -> Iterator[Runner]:
        """Write what `quantize` returned into a temporary folder, and load it from there."""
        with scratch_folder() as folder:
            self.write(simulated, folder)
            yield self.load(folder, graph, batch_size=batch_size)

    def refuses(self, scheme: Scheme) -> str | None:
        """Why the target does not store and execute layers of that scheme; None where it does."""
        weight, read = scheme.weight, scheme.input
        reason = self.lacks(scheme)
        if reason is None and weight is not None and weight.sparsity and (weight.group or not weight.symmetric):
            reason = f"{'group' if weight.group else 'zero point'} not beside zeros"
        stores = weight is None or weight.floating or weight.bits in self.weight_bits
        if reason is None and stores and (read is None or read.bits in self.input_bits):
            return None
        widths = ", ".join(f"w{bits}" for bits in self.weight_bits)
        inputs = ", ".join(f"a{bits}" for bits in self.input_bits)
        more = "" if reason is None else f", {reason}"
        return f"target {self.name} does not run it; weights {widths}, inputs {inputs} or float{more}"

    def schemes(self, choices: Sequence[str] | None) -> tuple[Scheme, ...]:
        """The choices, by default its own, as schemes: each offered, each once, ranges at run time all in one way."""
        texts = tuple(choices) if choices is not None else self.default_choices
        if not texts or len(set(texts)) != len(texts):
            raise InvalidInput(f"choices {list(texts)}: give one scheme or more, each once")
        schemes, kinds = tuple(Scheme.parse(text) for text in texts), dict[Format, str]()
        for scheme in schemes:
            if (reason := self.refuses(scheme)) is not None:
                raise InvalidInput(f"choice {scheme}: {reason}")
            if scheme.input is not None:
                kinds.setdefault(scheme.input, str(scheme))
        if len(kinds) > 1 and any(fmt.dynamic for fmt in kinds):
            texts = tuple(kinds.values())
            raise InvalidInput(f"choices {', '.join(texts)}: a plan takes all ranges at run time, in one way, or none")
        return schemes


def find_target(target: str | Target) -> Target:
    """The target of that name, as `litert`, or of its name with options, as `ethosu:accelerator=ethos-u65-256`.

    Options are the keyword-only arguments of the function `configured` of the target's module. Raises InvalidInput for
    an unknown name or option, or a value that the option does not take; a target is itself.
    """
    if isinstance(target, Target):
        return target
    name, _, options = target.partition(":")
    module = importlib.import_module(TARGETS[pick("target", name, TARGETS)])
    if name == target:
        return module.TARGET
    configured = getattr(module, "configured", lambda: module.TARGET)
    return dataclasses.replace(configured(**read_options("target", name, configured, options)), name=target)
