"""Pictures as tensors: channels, sizes and numbers as the model takes them, or as its own processor makes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from mixbit.core import InvalidInput, say, track, users_code
from mixbit.datasets._inputs import batch_of, picture_input
from mixbit.datasets._samples import Samples
from mixbit.datasets.load import LoadedData, Reading, normalised
from mixbit.models.load import LoadedModel

#: Options that say how pictures are read.
USES = ("batch_size", "image_size", "mean", "std", "skip_broken")
#: Number of channels -> what Pillow calls such pictures.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Pictures:
    """Files of pictures, and their labels.

    Attributes:
        spec: DATA, for errors.
        names: Of the files, for errors.
        open: The file of a name, to read.
        labels: [N, ...], None where there are none.
        classes: Names of the classes in the order of the labels' numbers, where labels are names.
    """

    spec: str
    names: Sequence[str]
    open: Callable[[str], IO[bytes]]
    labels: Tensor | None
    classes: tuple[str, ...] | None


def load_pictures(pictures: Pictures, model: LoadedModel, reading: Reading) -> LoadedData:
    """Batches of the pictures; raises InvalidInput where the model takes no pictures, or the options do not fit it.

    To train on, all pictures are read once before, since a broken one would end the training in its middle.
    """
    name, example = picture_input(pictures.spec, model)
    prepare, words = _preparation(pictures.spec, model, reading, example)
    reader = _Reader(pictures, prepare, reading.skip_broken)

    def read(numbers: Sequence[int]) -> Any:
        found = [(number, pixels) for number in numbers if (pixels := reader.pixels(number)) is not None]
        if not found:
            return None
        labels = None if pictures.labels is None else pictures.labels[[number for number, _ in found]]
        stacked = torch.stack([pixels for _, pixels in found])
        return batch_of([stacked] if name is None else {name: stacked}, labels)

    samples = Samples(pictures.spec, len(pictures.names), read, reading)
    for number in track(range(samples.size), "check pictures", samples.size) if reading.every_epoch else ():
        reader.pixels(number)
    return LoadedData(samples, pictures.classes, words, samples.size)


@dataclass(frozen=True)
class _Reader:
    """Reads pictures, all of one size; those that are broken are refused, or named once and left out."""

    pictures: Pictures
    prepare: Callable[[Any], Tensor]
    skips_broken: bool
    broken: set[int] = field(default_factory=set)
    first: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def pixels(self, number: int) -> Tensor | None:
        """Numbers of one picture, None where it is left out."""
        name, spec = self.pictures.names[number], self.pictures.spec
        if number in self.broken:
            return None
        try:
            with users_code(lambda error: _Broken(f"DATA {spec}: {name} cannot be read ({_why(error)})")):
                image = _opened(self.pictures.open, name)
        except _Broken as error:
            if not self.skips_broken:
                raise InvalidInput(f"{error}; remove it, or leave out such files by --skip-broken") from error
            self.broken.add(number)
            say(f"{error}; left out")
            return None
        with users_code(f"DATA {spec}: {name}: the processor fails"):
            pixels = self.prepare(image)
        shape = tuple(pixels.shape)
        self.first[:] = self.first or [(name, shape)]
        if shape != self.first[0][1]:
            other, wanted = self.first[0]
            raise InvalidInput(
                f"DATA {spec}: {name} gives {list(shape)}, {other} {list(wanted)}; give all one size by "
                "--image-size HxW, as --image-size 224x224"
            )
        return pixels


class _Broken(InvalidInput):
    """A file is no picture that can be read."""


def _why(error: BaseException) -> str:
    return "no picture" if type(error).__name__ == "UnidentifiedImageError" else f"{error}".partition("\n")[0]


def _opened(open_file: Callable[[str], IO[bytes]], name: str) -> Any:
    """The picture, decoded, upright, as grey, colours, or colours with opacity."""
    image_library, operations = _pillow()
    with open_file(name) as file, image_library.open(file) as image:
        image.load()
        upright = operations.exif_transpose(image)
    if upright.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut off at 255
        return image_library.fromarray((np.asarray(upright).clip(0, 65535) / 257).round().astype(np.uint8))
    if upright.mode == "F":
        raise ValueError("grey in 32-bit floats, whose range is not known")
    if upright.mode == "1":
        return upright.convert("L")
    has_opacity = upright.mode in ("LA", "La", "PA", "RGBa") or "transparency" in upright.info
    return (
        upright.convert("RGBA")
        if has_opacity
        else upright
        if upright.mode in MODES.values()
        else upright.convert("RGB")
    )


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 it is installed only where it is used
    except ImportError as error:
        raise InvalidInput("pictures need Pillow: pip install 'mixbit[images]'") from error
    return Image, ImageOps


def _preparation(
    spec: str, model: LoadedModel, reading: Reading, example: Tensor | None
) -> tuple[Callable[[Any], Tensor], str]:
    """A function from a picture to its numbers, and what it does in words."""
    _pillow()
    given = reading.image_size is not None or reading.mean is not None or reading.std is not None
    folder = model.folder
    if folder is not None and (folder / PROCESSOR).is_file():
        if not given:
            return _processor(spec, folder, example)
        say(f"DATA {spec}: {PROCESSOR} of the model is not used, since options say how pictures are read")
    shape = None if example is None else tuple(example.shape)
    last = shape is not None and shape[1] not in MODES and shape[3] in MODES
    channels = _channels(spec, model, reading, None if shape is None else shape[3 if last else 1])
    size = reading.image_size or (None if shape is None else (shape[1:3] if last else shape[2:4]))
    in_bytes = example is not None and example.dtype == torch.uint8
    if in_bytes and (reading.mean or reading.std):
        raise InvalidInput(f"DATA {spec}: the model takes pixels of 0 to 255; leave out --mean and --std")
    mean, std = (_for_each(values, channels) for values in (reading.mean or (0.0,), reading.std or (1.0,)))

    def prepare(image: Any) -> Tensor:
        image = image.convert(MODES[channels])
        if size is not None and image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), resample=_pillow()[0].Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, channels)
        pixels = pixels if in_bytes else (pixels.float() / 255 - mean) / std
        return pixels if last else pixels.permute(2, 0, 1).contiguous()

    words = f"{'grey' if channels == 1 else MODES[channels]} pixels"
    words += "" if size is None else f", resized to {size[0]}x{size[1]} (bilinear)"
    if not in_bytes:
        words += f", {normalised(reading.mean, reading.std)}"
    return prepare, words


def _channels(spec: str, model: LoadedModel, reading: Reading, wanted: int | None) -> int:
    """Channels that the model takes: of its example, of the options, of its first convolution; else three."""
    several = [len(values) for values in (reading.mean, reading.std) if values is not None and len(values) > 1]
    convolutions = (module for module in model.module.modules() if isinstance(module, nn.Conv2d))
    first = next((module.in_channels for module in convolutions), 3)
    channels = wanted or next(iter(several), first if first in MODES else 3)
    if channels not in MODES:
        whose = "the model takes pictures" if wanted else "--mean or --std is of pictures"
        raise InvalidInput(f"DATA {spec}: {whose} of {channels} channels; pictures have 1, 3 or 4")
    if any(number != channels for number in several):
        raise InvalidInput(f"DATA {spec}: the model takes {channels} channels; give --mean and --std one number each")
    return channels


def _for_each(values: tuple[float, ...], channels: int) -> Tensor:
    return torch.tensor(values).expand(channels) if len(values) == 1 else torch.tensor(values)


def _processor(spec: str, folder: Path, example: Tensor | None) -> tuple[Callable[[Any], Tensor], str]:
    """The model's own processor of pictures."""
    try:
        from transformers import AutoImageProcessor  # noqa: PLC0415 it is installed only where it is used
    except ImportError as error:
        raise InvalidInput(
            f"DATA {spec}: the processor of {folder} needs transformers: pip install 'mixbit[huggingface]'; "
            "or say how pictures are read by --image-size, --mean and --std"
        ) from error
    with users_code(f"DATA {spec}: {folder / PROCESSOR} cannot be used"):
        processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )

    def prepare(image: Any) -> Tensor:
        pixels = processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"][0]
        if example is not None and len(pixels) != example.shape[1]:
            raise InvalidInput(
                f"DATA {spec}: {PROCESSOR} makes {len(pixels)} channels, the model takes {example.shape[1]}; say how "
                "pictures are read by --image-size, --mean and --std"
            )
        return pixels

    return prepare, f"as {type(processor).__name__} of {PROCESSOR} makes them"
