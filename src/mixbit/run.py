"""What the steps of one run share."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixbit.errors import InvalidInput
from mixbit.files import check_writable_folder
from mixbit.flavours import choices_of
from mixbit.settings import Settings
from mixbit.target import Target, find_target, target_module


class Run:
    """What the steps share: the target, the settings, the places of files, and the clock.

    Raises:
        InvalidInput: names, settings or the folder cannot be used, or the runtime is not installed.
    """

    def __init__(self, target: str, out: Path, settings: Settings, *, force: bool) -> None:
        self.target: Target = find_target(target)
        self.module = target_module(target)
        self.module.require()
        settings.check()
        self.choices = choices_of(settings.flavour, self.target, settings.choices)
        check_writable_folder(out, force=force)
        if settings.prune_channels != 0 and self.module.NEEDS_GRAPH:
            raise InvalidInput(
                f"prune_channels={settings.prune_channels}: a file for {target} runs on the model's own graph, "
                "which has all channels; take another target"
            )
        self.out, self.settings, self.force = out, settings, force
        self.kept: set[Path] = set()
        self.task = settings.task
        self.seconds: dict[str, float] = {}

    @contextmanager
    def clock(self, step: str) -> Iterator[None]:
        """Count the seconds of a step."""
        began = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - began

    def keep(self, ending: str) -> Path:
        """The place beside the results of what an interrupted run goes on with; `clear` removes it."""
        path = self.out.absolute().with_name(f"{self.out.absolute().name}.{ending}")
        self.kept.add(path)
        return path

    def clear(self) -> None:
        """Remove what this run kept for itself; what another left there stays."""
        for path in self.kept:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
