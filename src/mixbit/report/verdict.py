"""The first words of the page, and its figures side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

from mixbit.report.words import ms, nats, percent, size, whole
from mixbit.results.result import Result


@dataclass(frozen=True)
class Verdict:
    """One sentence, and whether the artefact matches; None where the folder does not say."""

    text: str
    matches: bool | None
    problems: list[str]


@dataclass(frozen=True)
class KeyFigure:
    """A figure that stands out: what it is, before, after, and a remark."""

    name: str
    before: str
    after: str
    remark: str


@dataclass(frozen=True)
class Row:
    """A figure of the float network, the simulation and the artefact."""

    name: str
    float_: str
    simulated: str
    deployed: str
    is_part: bool = False


def verdict_of(result: Result) -> Verdict:
    """Size, accuracy, speed, and whether the file does what it should."""
    problems = result.problems
    matches = None if problems is None else not problems
    facts = [_size_in_words(result), *_accuracy_in_words(result), *_speed_in_words(result)]
    if matches:
        facts.append("computes what was predicted")
    ends = {
        True: ".",
        False: ", but it does not compute what was predicted: do not use it.",
        None: ". Whether it computes what was predicted, mixbit verify tells.",
    }
    listed = ", and ".join(filter(None, (", ".join(facts[:-1]), facts[-1])))
    return Verdict(f"The file for {result.target} {listed}{ends[matches]}", matches, problems or [])


def _size_in_words(result: Result) -> str:
    if result.weight_share is None:
        return f"holds weights in {size(result.deployed['weight_bytes'] + result.float_bytes)}"
    return f"holds the weights in {100 * result.weight_share:.3g} % of their size in float"


def _accuracy_in_words(result: Result) -> list[str]:
    before, after = result.float_.get("accuracy"), result.deployed.get("accuracy")
    if before is not None and after is not None:
        points = 100 * (after - before)
        if abs(points) < 0.005:
            return ["keeps the accuracy"]
        return [f"{'gains' if points > 0 else 'loses'} {abs(points):.2f} points of accuracy"]
    divergence = result.deployed.get("divergence", result.simulated.get("divergence"))
    return [] if divergence is None else [f"is {nats(divergence)} nats from float"]


def _speed_in_words(result: Result) -> list[str]:
    return [] if result.latency_ratio is None else [f"runs {result.latency_ratio.in_words} float"]


def key_figures(result: Result) -> list[KeyFigure]:
    """Accuracy, size, latency and match, as far as there are some."""
    before, after, ratio = result.float_, result.deployed, result.latency_ratio
    figures = []
    if "accuracy" in after:
        remark = f"of {whole(after.get('num_samples'))} samples"
        figures.append(KeyFigure("accuracy", percent(before.get("accuracy")), percent(after["accuracy"]), remark))
    elif "score" in after:
        figures.append(KeyFigure("score", nats(before.get("score")), nats(after["score"]), "by your own function"))
    elif "divergence" in after:
        figures.append(KeyFigure("divergence from float", "0", nats(after["divergence"]), "nats"))
    figures.append(_size_figure(result))
    if ratio is not None:
        remark = f"{ratio} times float"
        figures.append(KeyFigure("latency", ms(before.get("latency_ms")), ms(after.get("latency_ms")), remark))
    word = {None: "not noted", True: "matches", False: "does not match"}[verdict_of(result).matches]
    remark = f"outputs differ by {percent(after.get('relative_rms'))} of their spread"
    figures.append(KeyFigure("simulation and file", "", word, remark))
    return figures


def _size_figure(result: Result) -> KeyFigure:
    """All weights and scales, those included that no layer covers."""
    before, kept, share = result.float_.get("weight_bytes"), result.float_bytes, result.weight_share
    remark = f"{percent(share)} of float" if share is not None else "of weights and scales"
    remark += f"; {size(kept)} stay in float" if kept else ""
    in_float = size(None if before is None else before + kept)
    return KeyFigure("weights", in_float, size(result.deployed["weight_bytes"] + kept), remark)


def comparison_rows(result: Result) -> list[Row]:
    """Every figure that one of the networks has."""
    networks = (result.float_, result.simulated, result.deployed)
    rows = []
    for name, key, form in (
        ("accuracy", "accuracy", percent),
        ("your score", "score", nats),
        ("divergence from float, nats", "divergence", nats),
    ):
        if any(key in network for network in networks):
            in_float, simulated, deployed = (form(network.get(key)) for network in networks)
            rows.append(Row(name, in_float, simulated, deployed))
    if len(result.divergences) > 1:
        rows += [
            Row(f"of output {name}", "", nats(parts.get("simulated")), nats(parts.get("deployed")), is_part=True)
            for name, parts in result.divergences.items()
        ]
    after = result.deployed
    rows.append(Row("difference from the simulation, of its spread", "", "", percent(after.get("relative_rms"))))
    if len(result.outputs) > 1:
        rows += [Row(f"of output {name}", "", "", percent(rms), is_part=True) for name, rms in result.outputs.items()]
    if "agreement" in after:
        rows.append(Row("top answers that are those of the simulation", "", "", percent(after["agreement"])))
    before = result.float_
    predicted = whole(after.get("predicted_bytes"))
    in_float, deployed = whole(before.get("weight_bytes")), whole(after.get("weight_bytes"))
    rows.append(Row("bytes of weights in layers", in_float, predicted, deployed))
    rows.append(Row("bytes of the files", whole(before.get("file_bytes")), "", whole(after.get("file_bytes"))))
    rows.append(Row("latency of one sample", ms(before.get("latency_ms")), "", ms(after.get("latency_ms"))))
    return rows


@dataclass(frozen=True)
class PlanRow:
    """Another plan, simulated; None where a figure is missing."""

    name: str
    accuracy: float | None
    divergence: float | None
    held_out_divergence: float | None
    weight_bytes: float | None


@dataclass(frozen=True)
class UncoveredRow:
    """What no layer covers, and why; shares are of all bytes, and of all multiply-accumulates."""

    name: str
    kind: str
    reason: str
    weight_bytes: float | None
    weight_share: float | None
    macs_share: float | None


def other_plans(result: Result) -> list[PlanRow]:
    """The uniform plans, and the deployed one before it was trained."""
    rows = [
        PlanRow(
            f"{row.get('scheme', '')} everywhere",
            number_in(row, "accuracy"),
            number_in(row, "divergence"),
            number_in(row, "held_out_divergence"),
            number_in(row, "predicted_bytes"),
        )
        for row in result.uniform
    ]
    if result.untrained:
        before, size = result.untrained, result.deployed["predicted_bytes"]
        rows.append(PlanRow("before fine-tuning", before.get("accuracy"), before.get("divergence"), None, size))
    return rows


def uncovered_rows(result: Result) -> list[UncoveredRow]:
    """The part `uncovered`."""
    return [
        UncoveredRow(
            str(row.get("name", "")),
            str(row.get("kind", "")),
            str(row.get("reason", "")),
            number_in(row, "weight_bytes"),
            number_in(row, "weight_share"),
            number_in(row, "macs_share"),
        )
        for row in result.uncovered
    ]


def number_in(row: Mapping[str, float | str | None], name: str) -> float | None:
    """The figure of that name, where it is a number."""
    value = row.get(name)
    return value if isinstance(value, int | float) else None
