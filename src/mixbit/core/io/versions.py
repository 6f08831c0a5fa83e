"""Versions of files: older ones are lifted to the newest, newer ones are refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixbit.core.errors import InvalidInput

#: What a file of one version holds -> what it holds in the next version.
Lift = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Versions:
    """The versions of one kind of file, which names its own as `version`; without one it is of the first.

    Attributes:
        newest: The one that is written.
        lifts: Version -> how it becomes the next one, for every version before the newest.
    """

    newest: int = 1
    lifts: Mapping[int, Lift] = field(default_factory=dict)

    def lifted(self, content: Any, place: str | Path, what: str) -> Any:
        """The content in the form of the newest version; the content itself where it is that, or no file of the kind.

        Args:
            content: As it was read.
            place: Where, for the message.
            what: What the file is, as `a plan`.

        Raises:
            InvalidInput: It is of a later version.
        """
        number = content.get("version", 1) if isinstance(content, dict) else None
        if type(number) is not int or number < 1:
            return content
        if number > self.newest:
            raise InvalidInput(
                f"{place}: {what} of version {number}; mixbit {package_version()} reads versions up to {self.newest}: "
                "install a newer one, pip install --upgrade mixbit"
            )
        for each in range(number, self.newest):
            content = self.lifts[each](content) | {"version": each + 1}
        return content


def package_version() -> str:
    """The version of the installed package."""
    from importlib.metadata import version  # noqa: PLC0415 every command starts by this file

    return version("mixbit")
