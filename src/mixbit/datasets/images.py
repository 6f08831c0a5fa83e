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
    found, empty, open_file = _in_folder(path) if path.is_dir() else _in_zip(path)
    names = sorted(name for name in found if name.lower().endswith(ENDINGS) and not _is_hidden(name))
    if not names:
        raise InvalidInput(f"DATA {spec}: holds no picture; known are files that end with {', '.join(ENDINGS)}")
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    without = [PurePosixPath(name).parts for name in empty if not _is_hidden(name)]
    if (
        not path.is_dir() and len({parts[:1] for parts in (*folders, *without)}) == 1
    ):  # a zip of a folder with all in it
        folders, without = ([parts[1:] for parts in each] for each in (folders, without))
    loose = [name for name, parts in zip(names, folders, strict=True) if not parts]
    if loose and len(loose) < len(names):
        raise InvalidInput(
            f"DATA {spec}: {loose[0]} lies beside folders; put every picture into the folder of its class, or none"
        )
    labels, classes = None, None
    if not loose:
        further = [parts[0] for parts in without if len(parts) == 1]  # the numbers of other classes hang on them
        labels, classes = labels_of_texts(spec, [parts[0] for parts in folders], model, reading, further)
    return load_pictures(Pictures(spec, names, open_file, labels, classes), model, reading)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _in_folder(folder: Path) -> tuple[list[str], list[str], Callable[[str], IO[bytes]]]:
    """Names of all files in the folder and those inside, of folders that hold nothing, and how to open a file."""
    names, empty, seen = [], [], {folder.resolve()}
    for place, inside, files in os.walk(folder, followlinks=True):
        here = Path(place).relative_to(folder)
        real = {name: (Path(place) / name).resolve() for name in inside}
        inside[:] = [name for name in inside if real[name] not in seen]  # links may lead in a circle
        seen |= set(real.values())
        names += [(here / file).as_posix() for file in files]
        if not inside and all(map(_is_hidden, files)):
            empty.append(here.as_posix())
    return names, empty, lambda name: (folder / name).open("rb")


def _in_zip(path: Path) -> tuple[list[str], list[str], Callable[[str], IO[bytes]]]:
    if not path.is_file():
        raise InvalidInput(f"DATA {path}: no such file")
    with users_code(lambda error: InvalidInput(f"DATA {path}: no zip file, or part of one ({error})")):
        archive = zipfile.ZipFile(path)
    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    within = {str(parent) for name in archive.namelist() for parent in PurePosixPath(name).parents}
    folders = [entry.filename.rstrip("/") for entry in archive.infolist() if entry.is_dir()]
    return names, [name for name in folders if name not in within], archive.open


FORM = DataForm("a folder of pictures or pictures.zip", _takes, _load, USES)
