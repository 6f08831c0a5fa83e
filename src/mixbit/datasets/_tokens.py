"""Texts as tokens, by the tokenizer in the model's folder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixbit.core import InvalidInput, users_code
from mixbit.datasets._inputs import names_of
from mixbit.datasets._samples import Samples
from mixbit.datasets.load import LoadedData, Reading
from mixbit.models.load import LoadedModel

#: Options that say how texts are read.
USES = ("batch_size", "length")
#: Most tokens of a sample where no length is given: what it costs grows with the square.
LENGTH = 512
#: Names of the most tokens that a model takes, in configurations.
_POSITIONS = ("max_position_embeddings", "n_positions")
#: Files of which a tokenizer is made; one of them is enough.
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def load_blocks(spec: str, text: str, model: LoadedModel, reading: Reading) -> LoadedData:
    """Batches of blocks of the text, all of one length; labels are the tokens themselves, see `Task.aligned`.

    What is left at the end is no block. Raises InvalidInput where the text is shorter than one.
    """
    tokenizer = tokenizer_of(spec, model)
    length = _length(tokenizer, model, reading)
    with users_code(f"DATA {spec}: the tokenizer fails"):
        tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if len(tokens) < length:
        raise InvalidInput(
            f"DATA {spec}: {len(tokens)} tokens, a sample has {length}; give a longer text, or a smaller --length"
        )
    blocks = tokens[: len(tokens) // length * length].reshape(-1, length)

    def read(numbers: Sequence[int]) -> Any:
        ids = blocks[list(numbers)]
        inputs = _taken(spec, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, model)
        return {**inputs, "labels": ids.clone()}

    words = f"blocks of {length} tokens of the tokenizer"
    return LoadedData(Samples(spec, len(blocks), read, reading), None, words, len(blocks))


def load_lines(
    spec: str,
    texts: Sequence[str],
    labels: Tensor | None,
    classes: tuple[str, ...] | None,
    model: LoadedModel,
    reading: Reading,
) -> LoadedData:
    """Batches of texts, cut off at the length, each batch padded to its longest."""
    tokenizer = tokenizer_of(spec, model)
    length = _length(tokenizer, model, reading)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InvalidInput(f"DATA {spec}: the tokenizer of {model.folder} has no token to pad with; set pad_token")
        tokenizer.pad_token = tokenizer.eos_token

    def read(numbers: Sequence[int]) -> Any:
        some = [texts[number] for number in numbers]
        with users_code(f"DATA {spec}: the tokenizer fails"):
            made = tokenizer(some, padding=True, truncation=True, max_length=length, return_tensors="pt", verbose=False)
        inputs = _taken(spec, dict(made), model)
        return inputs if labels is None else {**inputs, "labels": labels[list(numbers)]}

    words = f"the tokenizer, at most {length} tokens, each batch padded to its longest"
    return LoadedData(Samples(spec, len(texts), read, reading), classes, words, len(texts))


def tokenizer_of(spec: str, model: LoadedModel) -> Any:
    """The tokenizer in the model's folder; raises InvalidInput where there is none."""
    folder = model.folder
    if folder is None or not any((folder / file).is_file() for file in _FILES):
        where = "MODEL is no folder that could hold one" if folder is None else f"{folder} holds none ({_FILES[0]})"
        way_out = "save it there by tokenizer.save_pretrained, or give tokens in a file.npz"
        raise InvalidInput(f"DATA {spec}: texts need the model's tokenizer, and {where}; {way_out}")
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415 it is installed only where it is used
    except ImportError as error:
        raise InvalidInput(f"DATA {spec}: texts need transformers: pip install 'mixbit[huggingface]'") from error
    with users_code(f"DATA {spec}: the tokenizer of {folder} cannot be loaded"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _length(tokenizer: Any, model: LoadedModel, reading: Reading) -> int:
    """Tokens of a sample: as given, else as many as tokenizer and model take, LENGTH at most."""
    config = getattr(model.module, "config", None)
    takes = [value for name in _POSITIONS if isinstance(value := getattr(config, name, None), int) and value > 0]
    if reading.length is not None:
        if takes and reading.length > min(takes):
            raise InvalidInput(f"--length {reading.length}: the model takes {min(takes)} tokens at most")
        return reading.length
    return min(LENGTH, tokenizer.model_max_length, *takes)


def _taken(spec: str, made: dict[str, Tensor], model: LoadedModel) -> dict[str, Tensor]:
    """Of what a tokenizer makes, the inputs that the model takes; raises InvalidInput where it needs others."""
    names, required = names_of(model)
    others = [name for name in required if name not in made]
    if others or not made.keys() & set(names):
        raise InvalidInput(
            f"DATA {spec}: a tokenizer makes {', '.join(made)}, and the model takes {', '.join(others or names)}; give "
            "these in a file.npz, or by a function"
        )
    return {name: value for name, value in made.items() if name in names}
