"""DATA as a text file: blocks of tokens for a causal language model, lines for others."""

from pathlib import Path

from mixbit.core import InvalidInput, users_code
from mixbit.datasets._tokens import USES, load_blocks, load_lines
from mixbit.datasets.load import DataForm, LoadedData, Reading
from mixbit.models.load import LoadedModel

ENDINGS = (".txt", ".text", ".md")


def _load(spec: str, model: LoadedModel, reading: Reading) -> LoadedData:
    if not Path(spec).is_file():
        raise InvalidInput(f"DATA {spec}: no such file")
    with users_code(f"DATA {spec}: is no text in UTF-8"):
        text = Path(spec).read_text(encoding="utf-8-sig")
    if model.causal:
        return load_blocks(spec, text, model, reading)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return load_lines(spec, lines, None, None, model, reading)


FORM = DataForm("text.txt", lambda spec: spec.endswith(ENDINGS), _load, USES)
