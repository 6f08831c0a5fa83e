"""Kills runs before and after each change of a name in a folder that is there already, empty or (--force) with results.

`python -m benchmarks.reliability.renames --count 50`
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reliability.runs import contents, exit_code, is_half, left_overs, started, timed, warm_up, words

#: Command line of a run that writes five files in little time.
short = partial(words, "nearest", target="packed")
KILLED = 9


def die_at(position: int, out: Path) -> None:
    """End this process, without any clean-up, at that change in the folder: before it where even, else after it."""
    left = [position]

    def step() -> None:
        if left[0] == 0:
            os._exit(KILLED)
        left[0] -= 1

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if Path(given[-1]).parent != out:
                return change(*given, **named)
            step()
            returned = change(*given, **named)
            step()
            return returned

        return call

    os.replace, os.rename, shutil.rmtree = dying(os.replace), dying(os.rename), dying(shutil.rmtree)
    Path.unlink, Path.mkdir = dying(Path.unlink), dying(Path.mkdir)  # type: ignore[method-assign]


def outcome(out: Path, position: int, more: list[str], old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """What comes of a run that ends there and is started again: `good`, or what is wrong; None where it did not end."""
    log = out.with_suffix(".log")
    if (status := exit_code(started(short(out, *more), log, partial(die_at, position, out)))) != KILLED:
        return None if status == 0 else f"exit code {status}: {log.read_text(encoding='utf-8')[-300:]}"
    is_whole = (out / "result.json").exists()
    if is_half(out) if is_whole else not names(out) <= {"mine"} | new.keys():
        return "half a folder"
    found = {name: (out / name).read_bytes() for name in ("plan.json", "model.safetensors") if (out / name).exists()}
    if not any(all(found[name] == files.get(name) for name in found) for files in (old, new)):
        return "old and new files are mixed"
    if is_whole and not more:
        more = ["--force"]  # as after any run that ended well
    if status := exit_code(started(short(out, *more), log)):
        return f"exit code {status} when started again: {log.read_text(encoding='utf-8')[-300:]}"
    if old and (out / "mine").read_text(encoding="utf-8") != "mine":
        return "the user's file is lost"
    if any(contents(out)[name] != content for name, content in new.items()):
        return "other content"
    return f"left over: {left_overs(out.parent)}" if left_overs(out.parent) else "good"


def names(folder: Path) -> set[str]:
    """Names of the files that are not mixbit's own."""
    return {path.name for path in folder.iterdir() if "mixbit-" not in path.name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=6, help="at most; all positions are about 60")
    parser.add_argument("--seconds", type=float, default=3600, help="end earlier, after this time")
    given = parser.parse_args()
    warm_up()
    began, outcomes = time.monotonic(), list[str]()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        timed(short(folder / "new"), folder / "log")
        timed([*short(folder / "old"), "--pin", "0.weight=w8a8"], folder / "log")
        new, old = contents(folder / "new"), contents(folder / "old")
        for case in ("old", "empty"):
            for position in range(1000):
                if len(outcomes) == given.count or time.monotonic() > began + given.seconds:
                    break
                out = folder / f"{case}-{position}" / "out"
                out.mkdir(parents=True)
                if case == "old":
                    shutil.copytree(folder / "old", out, dirs_exist_ok=True)
                    (out / "mine").write_text("mine", encoding="utf-8")
                more = ["--force"] if case == "old" else []
                if (said := outcome(out, position, more, old if case == "old" else {}, new)) is None:
                    break
                outcomes.append(said)
                if said != "good":
                    print(f"{case}, change {position}: {said}", flush=True)
    good = outcomes.count("good")
    print(f"kill before and after each rename into a folder, old results or empty: {good} of {len(outcomes)}")
    raise SystemExit(good < len(outcomes) or not outcomes)


if __name__ == "__main__":
    main()
