"""Target compressed_tensors: a folder of Hugging Face's that compressed-tensors packed, for transformers and vLLM.

`model.safetensors` holds the model's own tensors under its own names, and of a quantized Linear or Embedding what the
library's compressors make of it; `config.json` the model's configuration, with the schemes of all layers. transformers
unpacks the weights and computes in float.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.core import (
    InvalidInput,
    Ports,
    Runner,
    StoredWeight,
    Target,
    TargetMismatch,
    UnsupportedModel,
    quoted,
    read_json,
    read_tensors,
    reason_of,
    scratch_folder,
    users_code,
    with_metadata,
    write_text,
)
from mixbit.graph import Graph
from mixbit.quantization.quantizer import activation_quantizers, weight_quantizers
from mixbit.targets._compressed import MIXED, Compressed, compressed, lacks, lacks_for, layer_bytes, weight_bytes
from mixbit.targets._integers import plan_of, runtime, stored_rows, stored_weights
from mixbit.targets._usage import given_in_python

FILE, CONFIG = "model.safetensors", "config.json"
#: In the metadata of the file: layer -> the parameter, as transformers names it.
LAYERS = "mixbit layers"
#: What a configuration tells of how a model is called and where it came from, which is left to its class.
_CALLS = ("use_cache", "output_hidden_states", "output_attentions", "return_dict", "_name_or_path")
#: What transformers would fetch or run code by.
FOREIGN = {"auto_map", "attn_implementation", "_attn_implementation", "experts_implementation"}
#: Before the names of the quantizers in a graph's state.
_QUANTIZERS = "mixbit_quantizers."


def write(simulated: Graph, folder: Path) -> None:
    """Write model.safetensors and config.json."""
    require()
    plan, empty = plan_of(simulated), _empty(simulated.config)
    own_name = _own_names(simulated, empty)
    weights, read, layers = weight_quantizers(simulated), activation_quantizers(simulated), {}
    _, floats = stored_weights(simulated)
    for layer in simulated.layers:
        if layer.name in weights and layer.name not in floats:
            pair = weights[layer.name], simulated.parameter(layer.name)
            ranged = next((read[name] for name in layer.inputs if name in read), None)
            layers[layer.name] = compressed(layer, plan.scheme(layer.name), pair, ranged)
    state = simulated.module.state_dict() | floats
    tensors = {name: state[given].cpu().contiguous() for given, name in own_name.items() if given not in layers}
    for name, each in layers.items():
        module = name.rpartition(".")[0]
        tensors |= {f"{module}.{part}": value for part, value in each.tensors.items()}
    names = {layer.name: own_name[layer.name] for layer in simulated.layers}
    metadata = {"format": "pt", LAYERS: json.dumps(names)}
    (folder / FILE).write_bytes(with_metadata(safetensors.torch.save(tensors), metadata))
    config = _of_the_network(simulated.config) | {"dtype": "float32"} | _description(layers, empty)
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _of_the_network(config: Any) -> Any:
    """The configuration, and those inside it, without what only says how a model is called."""
    if not isinstance(config, Mapping):
        return config
    return {name: _of_the_network(value) for name, value in config.items() if name not in (*_CALLS, *FOREIGN)}


def _description(layers: Mapping[str, Compressed], empty: Any) -> dict[str, Any]:
    """`quantization_config`, with a group for each scheme; nothing where all layers stay in float."""
    groups: dict[str, Any] = {}
    for name, each in layers.items():
        group = groups.setdefault(each.scheme.model_dump_json(), each.scheme)
        group.targets.append(name.rpartition(".")[0])
    if not groups:
        return {}
    formats = {str(group.format) for group in groups.values()}
    linear = [name for name, module in empty.named_modules() if isinstance(module, torch.nn.Linear)]
    quantized = {name.rpartition(".")[0] for name in layers}
    library: Any = import_module("compressed_tensors.quantization")
    config = library.QuantizationConfig(
        config_groups={f"group_{number}": group for number, group in enumerate(groups.values())},
        format=formats.pop() if len(formats) == 1 else MIXED,
        quantization_status="compressed",
        ignore=[name for name in linear if name not in quantized],
    )
    return {"quantization_config": json.loads(config.model_dump_json())}


def _empty(config: Mapping[str, Any] | None) -> Any:
    """The model of that configuration, without numbers; raises UnsupportedModel where there is none."""
    transformers = require()
    way_out = "give a model of transformers or its folder, or take --target packed"
    if config is None:
        raise UnsupportedModel(
            f"target compressed_tensors writes folders of Hugging Face's: the network is none; {way_out}"
        )
    name = config["architectures"][0]
    model_class = getattr(transformers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise UnsupportedModel(
            f"target compressed_tensors: transformers {transformers.__version__} has no model {name}; {way_out}"
        )
    with _silent(transformers), torch.device("meta"):
        return model_class(model_class.config_class.from_dict(dict(config)))


def _own_names(simulated: Graph, empty: Any) -> dict[str, str]:
    """Name of a tensor in the graph -> what the folder calls it; raises UnsupportedModel where they do not fit."""
    state = {name: value for name, value in simulated.module.state_dict().items() if not name.startswith(_QUANTIZERS)}
    tied = dict(getattr(empty, "all_tied_weights_keys", None) or {})
    wanted = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
    names = {name: tied.get(name, name) for name in state}
    given = {names[name]: tuple(value.shape) for name, value in state.items()}
    missing = sorted(name for name in wanted if tied.get(name, name) not in given)
    further = sorted(name for name in state if name not in wanted)
    others = sorted(name for name, shape in given.items() if wanted.get(name, shape) != shape)
    for what, some in (("lacks", missing), ("has other sizes of", others), ("has besides", further)):
        if some:
            raise UnsupportedModel(
                f"target compressed_tensors: the captured graph {what} {some[0]} of {type(empty).__name__}, which then "
                "could not be loaded; capture the whole model, as from_pretrained returns it, or take --target packed"
            )
    return names


def load(folder: Path, graph: Graph | None = None, /, **_: Any) -> Runner:
    """The model in the folder, loaded by transformers, as a runner; the graph tells the names of its inputs."""
    transformers = require()
    if graph is None:
        raise InvalidInput("target compressed_tensors: give the captured graph, which tells how the model is called")
    model = _loaded(folder, transformers).to(graph.device)

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        with torch.no_grad():
            tensors = iter([torch.from_numpy(array).to(graph.device) for array in inputs])
            outputs = pytree.tree_leaves(graph.example.map(lambda _: next(tensors)).call(model))
        return [output.cpu().numpy() for output in outputs if isinstance(output, Tensor)]

    executed = {layer.name: "float32 on rounded values" for layer in graph.layers}
    libraries = f"transformers {transformers.__version__} and compressed-tensors {version('compressed-tensors')}"
    environment = {"runtime": libraries, "model": type(model).__name__}
    return Runner(run, lambda: executed, environment)


def _loaded(folder: Path, transformers: Any) -> Any:
    """The model of the folder, its weights unpacked, called as captured models are."""
    check_files(folder)
    name, _ = _configuration(folder)
    model_class = getattr(transformers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise TargetMismatch(f"{folder / CONFIG}: transformers {transformers.__version__} has no model {name}")

    def refused(error: BaseException) -> TargetMismatch:
        return TargetMismatch(f"{folder / FILE}: transformers cannot load it: {reason_of(error)}")

    with users_code(refused), _silent(transformers), scratch_folder() as scratch:
        for file in (FILE, CONFIG):  # transformers follows what other files beside them say
            (scratch / file).symlink_to((folder / file).absolute())
        model, told = model_class.from_pretrained(
            scratch,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        if model.config.__dict__.get("quantization_config") is not None:
            model.hf_quantizer.compressor.decompress_model(model)
    if wrong := sorted(str(name) for kind in told.values() for name in kind):
        raise TargetMismatch(f"{folder / FILE}: {len(wrong)} tensors do not fit {CONFIG}, as {wrong[0]}; export again")
    for config in _configs(model.config):
        config.use_cache = config.output_hidden_states = config.output_attentions = False
        config.return_dict = True
    return model.eval()


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those inside."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        if (inside := getattr(config, name, None)) is not None:
            yield from _configs(inside)


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """Without what transformers and compressed-tensors say of their own work, and their bars."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def check_files(folder: Path) -> None:
    """Raise InvalidInput or TargetMismatch unless both files are there and are of one model."""
    _, config = _configuration(folder)
    tensors, names = _read(folder / FILE)
    try:
        targets = [each for group in config["config_groups"].values() for each in group["targets"]] if config else []
    except (AttributeError, KeyError, TypeError) as error:
        raise TargetMismatch(f"{folder / CONFIG}: not written by target compressed_tensors; export again") from error
    for name in (*names.values(), *(f"{target}.weight" for target in targets)):
        if not _parts(tensors, name):
            raise TargetMismatch(f"{folder / FILE}: {name} is missing, which {CONFIG} or a layer needs; export again")


def _configuration(folder: Path) -> tuple[str, Any]:
    """Name of the model's class, and how it is quantized."""
    config = read_json(folder / CONFIG)
    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise TargetMismatch(f'{folder / CONFIG}: names no class under "architectures"; export again')
    quantized = config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
    if method not in (None, "compressed-tensors"):
        raise TargetMismatch(f"{folder / CONFIG}: is quantized by {quoted(method)}; export again")
    if (foreign := next(_foreign(config), None)) is not None:
        raise TargetMismatch(f"{folder / CONFIG}: has {foreign}, by which code may be fetched and run; export again")
    return names[0], config.get("quantization_config")


def _foreign(config: Any) -> Iterator[str]:
    """The keys of FOREIGN in a configuration and those inside it."""
    if isinstance(config, Mapping):
        yield from sorted(FOREIGN & config.keys())
        for value in config.values():
            yield from _foreign(value)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the file, and layer -> its parameter there."""
    tensors, metadata = read_tensors(path)
    try:
        return tensors, {str(layer): str(name) for layer, name in json.loads(metadata[LAYERS]).items()}
    except (AttributeError, KeyError, ValueError) as error:
        raise TargetMismatch(f"{path}: not written by target compressed_tensors; export again") from error


def _parts(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Part -> tensor of a parameter: `""` alone where it stays in float."""
    return {key.removeprefix(name): tensors[key] for key in sorted(tensors) if f"{key}_".startswith(f"{name}_")}


def stored(folder: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes and types of its weight and scales, read from the file."""
    tensors, names = _read(folder / FILE)
    return stored_rows(
        (layer, tensor.numel() * tensor.element_size(), _type(tensor, part))
        for layer, name in names.items()
        for part, tensor in _parts(tensors, name).items()
    )


def _type(tensor: Tensor, part: str) -> str:
    """Type of a part of a weight, as `int32 packed`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {part.removeprefix('_')}".strip()


def usage(ports: Ports, environment: Mapping[str, str]) -> dict[str, str]:
    """A program that loads the folder by transformers, which needs compressed-tensors beside it."""
    name = environment["model"]
    lines = [
        "import numpy as np",
        "import torch",
        f"from transformers import {name}  # and pip install compressed-tensors",
        "",
        f'model = {name}.from_pretrained(".").eval()',
        given_in_python(ports),
        "with torch.no_grad():",
        "    outputs = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})",
    ]
    return {"Python": "\n".join(lines)}


def require() -> Any:
    """transformers; raises InvalidInput unless it and compressed-tensors are installed."""
    return runtime("compressed_tensors", "transformers", "compressed_tensors")


TARGET = Target(
    name="compressed_tensors",
    files=(FILE, CONFIG),
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(8,),
    default_choices=("w2g32", "w3g32", "w4g32", "w6g32", "w8g32"),
    dynamic_choices=("w4a8d", "w6a8d", "w8a8d"),
    rounds_shifted=True,
    adds_biases=False,
    reads_alone=True,
    needs_graph=True,
    note="models of transformers alone: weights of Linear and Embedding in a folder that transformers loads with "
    "compressed-tensors, packed without gaps, computed in float; also bfloat16, dynamic, float16, group, one scale, "
    "zero point beside 8 bits",
    lacks=lacks,
    lacks_for=lacks_for,
    weight_bytes=weight_bytes,
    layer_bytes=layer_bytes,
    require=require,
    write=write,
    load=load,
    stored=stored,
    check_files=check_files,
    usage=usage,
)
