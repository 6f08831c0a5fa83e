"""Whether files of a folder are still those of its result."""

from collections.abc import Iterable
from pathlib import Path

from mixbit.core import MOST_JSON, TargetMismatch, find_target, safetensors_bytes, sha256
from mixbit.results.check_set import CHECK_FILE
from mixbit.results.result import Result, inside_of


def check_digests(folder: Path, result: Result, names: Iterable[str]) -> None:
    """Raise TargetMismatch for the first of these files of the result whose SHA-256 is another one now."""
    held = find_target(result.target).files_of(result.files)
    for name in names:
        path = inside_of(folder, name)
        most = result.deployed.get("file_bytes", 0) if name in held else MOST_JSON
        most = safetensors_bytes(path) if name == CHECK_FILE else most
        if path.is_file() and (size := path.stat().st_size) > most:  # a digest reads all of it
            of = "its header" if name == CHECK_FILE else "deployed.file_bytes, or any JSON"
            what = f"{name} takes {size:,} bytes, more than {most:,.0f} ({of})"
            raise TargetMismatch(f"the artefact does not match: {what}; quantize again")
        if sha256(path) != result.files[name]:
            raise TargetMismatch(f"the artefact does not match: {name} is not the file verified then; quantize again")
