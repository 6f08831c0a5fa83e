"""DATA as a folder of pictures, or a zip of one: sub-folders are classes, or all lie in it without labels."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from mixbit.core import InvalidInput, users_code
from mixbit.datasets._labels import labels_of_texts
from mixbit.datasets._pictures import USES, Pictures, load_pictures
from mixbit.datasets.load import DataForm, LoadedData, Reading
from mixbit.models.load import LoadedModel

#: Endings of files that are pictures; others are left alone.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def _takes(spec: str) -> bool:
    return spec.endswith(".zip") or Path(spec).is_dir()


def _load(spec: str, model: LoadedModel, reading: Reading) -> LoadedData:
    path = Path(spec)
    names, open_file = _in_folder(path) if path.is_dir() else _in_zip(path)
    names = sorted(name for name in names if name.lower().endswith(ENDINGS) and not _is_hidden(name))
    if not names:
        raise InvalidInput(f"DATA {spec}: holds no picture; known are files that end with {', '.join(ENDINGS)}")
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    if not path.is_dir() and len({parts[:1] for parts in folders}) == 1:  # a zip of a folder, in which all lies
        folders = [parts[1:] for parts in folders]
    loose = [name for name, parts in zip(names, folders, strict=True) if not parts]
    if loose and len(loose) < len(names):
        raise InvalidInput(
            f"DATA {spec}: {loose[0]} lies beside folders; put every picture into the folder of its class, or none"
        )
    labels, classes = None, None
    if not loose:
        labels, classes = labels_of_texts(spec, [parts[0] for parts in folders], model, reading)
    return load_pictures(Pictures(spec, names, open_file, labels, classes), model, reading)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _in_folder(folder: Path) -> tuple[list[str], Callable[[str], IO[bytes]]]:
    """Names of all files in the folder, with the folders inside, and how to open one."""
    names, seen = [], {folder.resolve()}
    for place, inside, files in os.walk(folder, followlinks=True):
        real = {name: (Path(place) / name).resolve() for name in inside}
        inside[:] = [name for name in inside if real[name] not in seen]  # links may lead in a circle
        seen |= set(real.values())
        names += [(Path(place) / file).relative_to(folder).as_posix() for file in files]
    return names, lambda name: (folder / name).open("rb")


def _in_zip(path: Path) -> tuple[list[str], Callable[[str], IO[bytes]]]:
    if not path.is_file():
        raise InvalidInput(f"DATA {path}: no such file")
    with users_code(f"DATA {path}: no zip file"):
        archive = zipfile.ZipFile(path)
    return [entry.filename for entry in archive.infolist() if not entry.is_dir()], archive.open


FORM = DataForm("a folder of pictures or pictures.zip", _takes, _load, USES)
