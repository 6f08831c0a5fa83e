"""What tells one subject, loss or metric from another, so that a study takes up only results that still hold."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import mixbit
from mixbit.errors import InvalidInput
from mixbit.identity import source_digest, tensors_digest, text_digest
from mixbit.metrics import Metric
from mixbit.studies.truth import Subject


def digests(subject: Subject) -> dict[str, str]:
    """What tells this subject from another: hashes of the graph's code and tensors, of the user's loss, of the data."""
    weights, loss = subject.graph.module.state_dict(), subject.task.own_loss
    found = {
        "code": text_digest(subject.graph.module.code),
        "loss": "the task's" if loss is None else source_digest(loss),
        "weights": tensors_digest(weights[name] for name in sorted(weights)),
    }
    for name in ("calibration", "evaluation"):
        pairs = subject.pairs(name)
        found[name] = tensors_digest(
            leaf for inputs, labels in pairs for leaf in (*inputs.tensors, labels) if leaf is not None
        )
    return found


def same_subject(setup: Callable[[], Subject], expected: Mapping[str, str]) -> Subject:
    """What the setup returns; raises InvalidInput where that is not what it returned before."""
    subject = setup()
    for name, found in digests(subject).items():
        if found != expected[name]:
            raise InvalidInput(
                f"setup: returns other {name} each time it is called; seed what it draws, and load weights from a file "
                "instead of training them, which gives others with another number of threads; or pass processes=1 "
                "(--processes 1), which calls it once"
            )
    return subject


def metric_digest(metric: str | Metric) -> str:
    """Of one of mixbit's by name, a hash of mixbit's source; of the user's own, of its own."""
    return _own_source() if isinstance(metric, str) else source_digest(metric)


@cache
def _own_source() -> str:
    package = Path(mixbit.__file__).parent
    return text_digest("".join(path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))))
