"""DATA as a table: .csv or .tsv of paths of pictures, or of texts, with labels."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixbit.core import InvalidInput, users_code
from mixbit.datasets._labels import labels_of_texts
from mixbit.datasets._pictures import USES as OF_PICTURES, Pictures, load_pictures
from mixbit.datasets._tokens import USES as OF_TEXTS, load_lines
from mixbit.datasets.load import DataForm, LoadedData, Reading
from mixbit.models.load import LoadedModel

ENDINGS = {".csv": ",", ".tsv": "\t"}
#: Names of columns, in a header.
PATHS = ("path", "file", "filename", "file_name", "image", "image_path", "img", "picture")
TEXTS = ("text", "sentence", "review", "content", "document", "question", "tweet", "comment", "title")
LABELS = ("label", "labels", "class", "class_name", "category", "target", "sentiment", "intent", "topic", "y")


@dataclass(frozen=True)
class _Table:
    """Columns of a table; `labels` is empty where it has none.

    Attributes:
        lines: Number of each row's line in the file, from 1.
        are_paths: Whether the values are paths of pictures.
    """

    lines: Sequence[int]
    values: Sequence[str]
    labels: Sequence[str]
    are_paths: bool


def _load(spec: str, model: LoadedModel, reading: Reading) -> LoadedData:
    path = Path(spec)
    if not path.is_file():
        raise InvalidInput(f"DATA {spec}: no such file")
    table = _read(spec, path)
    for line, label in zip(table.lines, table.labels, strict=False):
        if not label and reading.task != "multilabel":
            raise InvalidInput(f"DATA {spec}: line {line} has no label; write one, or leave the line out")
    labels, classes = labels_of_texts(spec, table.labels, model, reading) if table.labels else (None, None)
    if not table.are_paths:
        return load_lines(spec, table.values, labels, classes, model, reading)
    for line, name in zip(table.lines, table.values, strict=True):
        if not _is_file(path.parent / name):
            raise InvalidInput(
                f"DATA {spec}: line {line}: no file {name!r} in {path.parent}; paths count from the folder of the table"
            )
    pictures = Pictures(spec, table.values, lambda name: (path.parent / name).open("rb"), labels, classes)
    return load_pictures(pictures, model, reading)


def _read(spec: str, path: Path) -> _Table:
    with (
        users_code(lambda error: InvalidInput(f"DATA {spec}: is no table in UTF-8 that can be read ({error})")),
        path.open(encoding="utf-8-sig", newline="") as file,
    ):
        reader = csv.reader(file, delimiter=_delimiter(file.readline(), ENDINGS[path.suffix]), strict=True)
        file.seek(0)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    if not rows:
        raise InvalidInput(f"DATA {spec}: holds no row")
    width = len(rows[0][1])
    for line, row in rows:
        if len(row) != width:
            raise InvalidInput(
                f"DATA {spec}: line {line} has {len(row)} columns, the first {width}; quote what holds commas"
            )
    header, values, labels = _columns(spec, path.parent, [row for _, row in rows])
    body = rows[1:] if header else rows
    if not body:
        raise InvalidInput(f"DATA {spec}: holds no row but its header")
    texts = [row[values] for _, row in body]
    names = [name.lower() for name in rows[0][1]] if header else []
    are_paths = (bool(names) and names[values] in PATHS) or _is_file(path.parent / texts[0])
    return _Table(
        [line for line, _ in body], texts, [] if labels is None else [row[labels] for _, row in body], are_paths
    )


def _delimiter(line: str, usual: str) -> str:
    """What parts the columns: another than usual where the first line so holds names that are known."""
    for delimiter in (usual, ";", "\t", ","):
        names = [name.strip(' "\r\n').lower() for name in line.split(delimiter)]
        if len(names) > 1 and any(name in PATHS + TEXTS + LABELS for name in names):
            return delimiter
    return usual


def _columns(spec: str, folder: Path, rows: Sequence[Sequence[str]]) -> tuple[bool, int, int | None]:
    """Whether there is a header, and the columns of values and of labels."""
    names = [name.lower() for name in rows[0]]
    known = [place for place, name in enumerate(names) if name in PATHS + TEXTS]
    labels = [place for place, name in enumerate(names) if name in LABELS]
    if known or labels:
        values = known or [place for place in range(len(names)) if place not in labels][:1]
        if not values:
            raise InvalidInput(f"DATA {spec}: has labels alone ({', '.join(rows[0])}); call a column path or text")
        others = [place for place in range(len(names)) if place != values[0]]
        return True, values[0], labels[0] if labels else others[0] if len(others) == 1 else None
    if len(names) > 2:
        raise InvalidInput(
            f"DATA {spec}: {len(names)} columns without known names ({', '.join(rows[0][:5])}); call them in the first "
            "row: path or text, and label"
        )
    return _looks_like_header(folder, rows), 0, 1 if len(names) == 2 else None


def _looks_like_header(folder: Path, rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row differs from all others: no file where they are, or a label that none of them has."""
    if len(rows) < 2:
        return False
    if _is_file(folder / rows[1][0]):
        return not _is_file(folder / rows[0][0])
    others = {row[-1] for row in rows[1:]}
    return len(rows[0]) == 2 and rows[0][1] not in others and len(others) < len(rows) - 1


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a long text is no path
        return False


FORM = DataForm(
    "table.csv or table.tsv", lambda spec: Path(spec).suffix in ENDINGS, _load, tuple({*OF_PICTURES, *OF_TEXTS})
)
