"""Reads the file of a sweep: lists of models, targets, budgets and roundings, and settings of all cells.

Keys are the options of `mixbit quantize`, with `_` for `-`; what tells of a model and its data stands in its table.
"""

import json
import platform
import tomllib
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from mixbit.app.commands import options
from mixbit.core import (
    MOST_JSON,
    InvalidInput,
    absolute,
    load_function,
    model_of,
    names_function,
    pick,
    read_bytes,
)
from mixbit.datasets.load import Reading, form_of_data
from mixbit.models.load import form_of_model
from mixbit.pipeline.cells import Given
from mixbit.pipeline.settings import Settings
from mixbit.pipeline.sweep import SweepModel
from mixbit.training.loop import Training

_Count = Annotated[int, Field(ge=1)]
_Texts = list[str]
_Some = Annotated[list[str], Field(min_length=1)]


class ModelWords(BaseModel):
    """One `[[models]]` of the file; each key as the option of that name, texts of repeatable ones in a list."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    model: str
    data: str
    evaluate: Annotated[str | None, Field(alias="eval")] = None
    train: str | None = None
    samples: _Count | None = None
    batch_size: _Count | None = None
    image_size: str | None = None
    mean: str | None = None
    std: str | None = None
    skip_broken: bool = False
    length: _Count | None = None
    dynamic: _Texts = []
    task: str | None = None
    output_weight: _Texts = []
    loss: str | None = None
    score: str | None = None
    pin: _Texts = []
    device: str = "cpu"

    def reading(self, seed: int) -> Reading:
        """How its data is read."""
        return options.reading_of(
            batch_size=self.batch_size,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            skip_broken=self.skip_broken,
            length=self.length,
            seed=seed,
        )


class SweepWords(BaseModel):
    """The file; settings of all cells are options of those names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    out: str | None = None
    models: Annotated[list[ModelWords], Field(min_length=1)]
    targets: _Some
    budgets: _Some
    roundings: _Some = ["nearest"]
    choices: _Some | None = None
    metric: str = "fisher"
    search: str = "ilp"
    importance: str = "magnitude"
    ranges: str = "mse"
    bias_correction: str = "at_once"
    reestimate_bn: bool = False
    equalize: bool = False
    eval_subset_ratio: float = 1.0
    eval_timeout: float | None = None
    flavour: str = "static"
    epochs: _Count | None = None
    lr: float | None = None
    fast: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def noted(self) -> dict[str, JsonValue]:
        """The settings of all cells, for sweep.json."""
        apart = {"out", "models", "targets", "budgets", "roundings"}
        return self.model_dump(mode="json", exclude=apart, exclude_none=True)


def read_sweep(path: Path) -> SweepWords:
    """Read the file; raise InvalidInput, which names the key and what is known, for what is no sweep."""
    try:
        content = tomllib.loads(read_bytes(path, MOST_JSON).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: not valid TOML ({error})") from error
    models = content.get("models")
    tables = [table for table in models if isinstance(table, dict)] if isinstance(models, list) else []
    for kind, some in ((SweepWords, [content]), (ModelWords, tables)):
        known = [field.alias or name for name, field in kind.model_fields.items()]
        for name in (name for table in some for name in table):
            try:
                pick("key" if kind is SweepWords else "key of a model", name, known)
            except InvalidInput as error:
                raise InvalidInput(f"{path}: {error}") from None
    words = model_of(json.dumps(content, default=str), path, SweepWords, "a sweep")
    names = [model.name for model in words.models]
    lists = {"targets": words.targets, "budgets": words.budgets, "roundings": words.roundings, "names of models": names}
    for what, texts in lists.items():
        if len(set(texts)) < len(texts):
            raise InvalidInput(f"{path}: {what}: {max(texts, key=texts.count)!r} stands twice; leave one out")
    return words


def models_of(words: SweepWords, path: Path, command: Sequence[str]) -> dict[str, SweepModel]:
    """Name -> model, with checked settings; raises InvalidInput, which names the model, for those that are wrong."""
    return {model.name: _model_of(words, model, path, command) for model in words.models}


def _model_of(words: SweepWords, model: ModelWords, path: Path, command: Sequence[str]) -> SweepModel:
    try:
        _check(words, model)
        settings = _settings(words, model, command)
        for each in settings.values():
            each.check()
        options.device_of(model.device)
        model.reading(words.seed)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: model {model.name}: {error}") from error
    noted = model.model_dump(mode="json", by_alias=True, exclude={"name"}, exclude_none=True)
    return SweepModel(partial(load_given, words, model, command, Path.cwd()), settings, noted)


def _check(words: SweepWords, model: ModelWords) -> None:
    """Raise InvalidInput for a MODEL or DATA of no known form, and for settings without use."""
    specs = [("MODEL", model.model), *(("DATA", spec) for spec in (model.data, model.evaluate, model.train) if spec)]
    for what, spec in specs:
        form = form_of_model(spec) if what == "MODEL" else form_of_data(spec)
        if form.takes is names_function:
            load_function(spec, what)
    if words.flavour != "qat":
        for name, value in (("epochs", words.epochs), ("lr", words.lr), ("train", model.train)):
            if value is not None:
                raise InvalidInput(f"{name} = {value!r}: only flavour = 'qat' trains; leave it out")
    options.check_importance(words.importance, words.choices, options.pins_of(model.pin))


def _settings(words: SweepWords, model: ModelWords, command: Sequence[str]) -> dict[str, Settings]:
    """Rounding -> the settings of its cells, without what the data tells."""
    settings = Settings(
        task=options.task_of(model.task, model.loss, model.output_weight),
        choices=words.choices,
        metric=options.function_or_name(words.metric, "METRIC"),
        search=options.function_or_name(words.search, "SEARCH"),
        importance=words.importance,
        pins=options.pins_of(model.pin),
        score=None if model.score is None else load_function(model.score, "SCORE"),
        eval_subset_ratio=words.eval_subset_ratio,
        eval_timeout_s=words.eval_timeout,
        ranges=options.function_or_name(words.ranges, "RANGES"),
        bias_correction=words.bias_correction,
        reestimate_batch_norms=words.reestimate_bn,
        equalize=words.equalize,
        flavour=words.flavour,
        epochs=3 if words.epochs is None else words.epochs,
        training=Training() if words.lr is None else Training(lr=words.lr),
        dynamic=options.dynamic_of(model.dynamic),
        seed=words.seed,
        fast=words.fast,
        samples=model.samples,
        model=absolute(model.model),
        command=command,
    )
    roundings = dict.fromkeys(words.roundings)
    return {text: replace(settings, rounding=options.function_or_name(text, "ROUNDING")) for text in roundings}


def load_given(words: SweepWords, model: ModelWords, command: Sequence[str], folder: Path) -> Given:
    """Load MODEL and DATA, whose paths count from the folder: other processes may begin elsewhere."""
    if not folder.is_dir():
        raise InvalidInput(
            f"{folder}: no such folder on {platform.node()}; all nodes must have it, with MODEL and DATA"
        )
    with chdir(folder):
        options.say_unless_used(model.loss, words.metric)
        network = options.model_on(absolute(model.model), model.device)
        task = options.task_of(model.task, model.loss, model.output_weight, network)
        specs = {"data": model.data, "eval": model.evaluate, "train": model.train}
        places = {name: None if spec is None else absolute(spec) for name, spec in specs.items()}
        batches, noted = options.data_of(places, network, model.reading(words.seed), task)
        settings = {
            rounding: replace(each, task=task, train_batches=batches["train"], **noted)
            for rounding, each in _settings(words, model, command).items()
        }
    return Given(network.module, batches["data"], batches["eval"], settings)
