"""Scores of what was tried, kept in a file, so that an interrupted search goes on where it stopped."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixbit.errors import InvalidInput
from mixbit.files import write_text


class Journal:
    """A file with one line of JSON for what it is about, then one for each score.

    A line that the end of a process cut short is left out.

    Args:
        path: The file; None keeps scores in memory alone.
        about: What the scores depend on, as JSON.
        force: Whether a journal about something else is thrown away.

    Raises:
        InvalidInput: the file is about something else, or is no journal.
    """

    def __init__(
        self, path: Path | None = None, about: Mapping[str, Any] | None = None, *, force: bool = False
    ) -> None:
        self.path = path
        self.scores: dict[tuple[str, ...], float] = {}
        about = self.about = dict(about or {})
        if path is None:
            return
        lines = _lines(path)
        if lines[1:] and lines[0] != about:
            if not force:
                raise InvalidInput(
                    f"{path}: holds trials of another run; delete it, or give --force to throw them away"
                )
            lines = []
        if not lines or lines[0] != about:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(about) + "\n")
        for number, line in enumerate(lines[1:], 2):
            plan, score = (line.get("plan"), line.get("score")) if isinstance(line, dict) else (None, None)
            if not isinstance(plan, list) or not isinstance(score, float | int) or not math.isfinite(score):
                raise InvalidInput(f"{path}: line {number} holds no plan and score; delete the file")
            self.scores[tuple(plan)] = float(score)

    def score_of(self, plan: Sequence[str], score: Callable[[], float]) -> float:
        """The score of a plan, given as its schemes in order: what is known, or else what the function returns."""
        key = tuple(plan)
        if key not in self.scores:
            self.scores[key] = score()
            self._append({"plan": list(key), "score": self.scores[key]})
        return self.scores[key]

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is None:
            return
        if not self.path.exists():  # another run with the same output has ended
            write_text(self.path, json.dumps(self.about) + "\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(path: Path) -> list[Any]:
    """The file's lines; mends one that was cut short, since the next would be written behind it."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read as a journal of trials: {error}") from error
    whole = [text for text in texts if text.endswith("\n")]
    if len(whole) < len(texts):
        write_text(path, "".join(whole))
    try:
        return [json.loads(text) for text in whole]
    except ValueError as error:
        raise InvalidInput(f"{path}: not a journal of trials ({error}); delete it") from error
