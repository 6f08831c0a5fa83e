"""MODEL as a folder of Hugging Face's: config.json and *.safetensors, as `save_pretrained` writes them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mixbit.core import InvalidInput, did_you_mean, read_json, say, users_code
from mixbit.graph import parameters_on_meta
from mixbit.models.load import LoadedModel, ModelForm

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
#: Endings of files of weights that are pickles, which may run code.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
#: Endings of names of architectures -> the task; the first that fits counts. None: of the number of labels.
_TASKS: dict[str, str | None] = {
    "ForSequenceClassification": None,
    "ForImageClassification": None,
    "ForImageClassificationWithTeacher": None,
    "ForVideoClassification": None,
    "ForAudioClassification": None,
    "ForMultipleChoice": "classification",
    "ForNextSentencePrediction": "classification",
    "ForTokenClassification": "language",
    "ForAudioFrameClassification": "language",
    "ForCausalLM": "language",
    "LMHeadModel": "language",
    "ForMaskedLM": "language",
    "ForConditionalGeneration": "language",
    "ForSemanticSegmentation": "segmentation",
    "ForDepthEstimation": "regression",
    "ForImageToImage": "regression",
    "ForImageSuperResolution": "regression",
    "ForQuestionAnswering": "multi:start_logits=classification,end_logits=classification",
    "ForObjectDetection": "detection",
    "ForInstanceSegmentation": "detection",
    "ForUniversalSegmentation": "detection",
    "ForCTC": "ctc",
    "WithProjection": "regression",
    "Encoder": "regression",
    "Model": "regression",
    "Backbone": "regression",
}
_CAUSAL = ("ForCausalLM", "LMHeadModel")
#: `problem_type` of a configuration -> the task.
_PROBLEMS = {
    "regression": "regression",
    "multi_label_classification": "multilabel",
    "single_label_classification": "classification",
}


def _load(spec: str) -> LoadedModel:
    """The network of the folder, in float32 and eval mode, which returns tensors alone.

    Nothing is fetched, no code of the folder runs, and no pickle is read.

    Raises:
        InvalidInput: a file is missing or damaged, weights are pickles or not all there, or transformers does not know
            the architecture.
    """
    folder, (transformers, architecture) = Path(spec), _architecture(spec)
    with users_code(f"MODEL {spec}: transformers cannot load it"), _no_bars(transformers.utils.logging):
        module, told = architecture.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            dtype=torch.float32,
            output_loading_info=True,
        )
    if missing := sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]])):
        raise InvalidInput(
            f"MODEL {spec}: {len(missing)} weights of {architecture.__name__} are not in the files, or of other "
            f"shapes, as {missing[0]}; save the whole trained network by save_pretrained"
        )
    return _loaded(spec, module)


def _on_meta(spec: str) -> LoadedModel:
    """As `_load`, with parameters on `meta` whose numbers stay in the folder's files."""
    folder, (transformers, architecture) = Path(spec), _architecture(spec)
    with users_code(f"MODEL {spec}: transformers cannot make it"), parameters_on_meta():
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        module = architecture._from_config(config, dtype=torch.float32)
    return replace(_loaded(spec, module), weights=folder)


def _architecture(spec: str) -> tuple[Any, Any]:
    """transformers, and the class that the folder names; raises InvalidInput as `_load` does."""
    name = _checked(spec, Path(spec))
    try:
        transformers: Any = import_module("transformers")  # it is installed only where it is used
    except ImportError as error:
        raise InvalidInput(
            f"MODEL {spec}: a folder of Hugging Face's needs transformers: pip install 'mixbit[huggingface]'"
        ) from error
    architecture: Any = getattr(transformers, name, None)
    if not (isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)):
        near = did_you_mean(name, [each for each in dir(transformers) if each[0].isupper() and each != name])
        raise InvalidInput(
            f"MODEL {spec}: transformers {transformers.__version__} has no model {name}{near}, and code of the folder "
            "is never run; give a function that returns the model, as file.py:function"
        )
    return transformers, architecture


def _loaded(spec: str, module: Any) -> LoadedModel:
    """The network, which returns tensors alone, with what its configuration tells."""
    name, folder = type(module).__name__, Path(spec)
    for config in _configs(module.config):
        config.use_cache = config.output_hidden_states = config.output_attentions = False
        config.return_dict = True
    task = _task(name, module.config)
    if task is None:
        say(f"MODEL {spec}: what {name} does is not known; it is taken for classification unless --task says another")
    example = _example(module, folder)
    return LoadedModel(module.eval(), task, folder, _classes(module.config), example, causal=name.endswith(_CAUSAL))


@contextmanager
def _no_bars(logging: Any) -> Iterator[None]:
    """Without the progress bars of transformers, which heed neither --quiet nor the lack of a terminal."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _checked(spec: str, folder: Path) -> str:
    """Name of the architecture; raises InvalidInput unless the folder holds a configuration and safe weights."""
    if not (folder / CONFIG).is_file():
        raise InvalidInput(f"MODEL {spec}: a folder without {CONFIG}; give one that save_pretrained wrote")
    config = read_json(folder / CONFIG)
    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InvalidInput(f'MODEL {spec}: {CONFIG} names no class under "architectures"; save_pretrained writes it')
    if config.get("quantization_config"):
        raise InvalidInput(f"MODEL {spec}: its weights are quantized already; give the network in float")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        what = (
            f"{pickles[0]} is a pickle, which may run code, and is never read" if pickles else "no *.safetensors there"
        )
        raise InvalidInput(
            f"MODEL {spec}: {what}; load the model where you trust it, and write it by model.save_pretrained(folder), "
            "which makes model.safetensors"
        )
    return names[0]


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those inside, as of the text and picture parts of a model."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        inside = getattr(config, name, None)
        if inside is not None:
            yield from _configs(inside)


def _task(name: str, config: Any) -> str | None:
    ending = next((ending for ending in _TASKS if name.endswith(ending)), None)
    if ending is None or _TASKS[ending] is not None:
        return None if ending is None else _TASKS[ending]
    if config.num_labels == 1:
        return "regression"
    return _PROBLEMS.get(getattr(config, "problem_type", None) or "", "classification")


def _classes(config: Any) -> tuple[str, ...] | None:
    """Names of the classes; None where they are those that stand for none, `LABEL_0` and so on."""
    names = getattr(config, "id2label", None) or {}
    if set(names) != set(range(len(names))):
        return None
    ordered = tuple(str(names[number]) for number in range(len(names)))
    return None if not names or ordered == tuple(f"LABEL_{number}" for number in range(len(names))) else ordered


def _example(module: Any, folder: Path) -> dict[str, Any] | None:
    """Two pictures of the right size, for a network of pictures alone whose configuration tells the size."""
    if getattr(module, "main_input_name", None) != "pixel_values" or hasattr(module.config, "vocab_size"):
        return None
    size = _size(getattr(module.config, "image_size", None)) or _processed_size(folder)
    channels = getattr(module.config, "num_channels", 3)
    return None if size is None else {"pixel_values": torch.zeros(2, channels, *size)}


def _processed_size(folder: Path) -> tuple[int, int] | None:
    """Size that the processor of pictures gives them."""
    if not (folder / PROCESSOR).is_file():
        return None
    processor = read_json(folder / PROCESSOR)
    crops = processor.get("do_center_crop") and processor.get("crop_size")
    return _size(crops or processor.get("size"))


def _size(value: Any) -> tuple[int, int] | None:
    """Height and width of a number, a pair, or a dict of both."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, int):
        value = [value, value]
    pair = value if isinstance(value, list | tuple) and len(value) == 2 else ()
    return (pair[0], pair[1]) if pair and all(isinstance(each, int) and each > 0 for each in pair) else None


FORM = ModelForm("a folder with config.json and *.safetensors", lambda spec: Path(spec).is_dir(), _load, _on_meta)
