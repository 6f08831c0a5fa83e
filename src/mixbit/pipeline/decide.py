"""Which plan to deploy, and on what grounds."""

from dataclasses import dataclass

from mixbit.core import Plan, Sensitivity
from mixbit.core.batches import Batch
from mixbit.core.task import Task
from mixbit.graph.evaluate import Evaluation
from mixbit.graph.graph import Graph
from mixbit.targets.verify import agreement, predicted_bytes

#: Share of the top answers below which a plan has destroyed the network.
LEAST_AGREEMENT = 0.5


@dataclass(frozen=True)
class Contender:
    """One plan, simulated.

    Attributes:
        plan: The plan.
        simulated: Its simulation.
        divergence: On the held-out calibration data, from the float network.
        uniform: What the same uniform plan is called, as `w4a8`, or `w8a8d (w8 elsewhere)`; None where it is none.
        untrained: What the simulation was before training.
    """

    plan: Plan
    simulated: Graph
    divergence: float
    uniform: str | None = None
    untrained: Graph | None = None


@dataclass(frozen=True)
class Decision:
    """Which plan to deploy, and on what grounds.

    Attributes:
        graph: The float graph.
        table: The sensitivities.
        contenders: The searched plan first, then the uniform ones within the budget.
        chosen: One of them.
        grounds: Why it was chosen, in a sentence.
        batches: The data to report on.
        outputs: On that data, of `float`, of `chosen`, of each uniform plan as it is called, and, where channels were
            removed, of the network with all of them as `dense`, and, where it was trained, of the plan `untrained`.
        dense: The graph with all its channels, where some were removed from `graph`.
    """

    graph: Graph
    table: Sensitivity
    contenders: list[Contender]
    chosen: Contender
    grounds: str
    batches: list[Batch]
    outputs: dict[str, Evaluation]
    dense: Graph | None = None

    @property
    def predicted_bytes(self) -> dict[str, int]:
        """Layer -> bytes of its weight and scales in the file."""
        return predicted_bytes(self.graph.layers, self.chosen.plan)


def warning(outputs: dict[str, Evaluation], task: Task) -> str | None:
    """What to look at where the chosen plan is no longer the network on the evaluated data, in a sentence; else None.

    That is where less than half of the top answers are the float network's; or, where the task has none, where outputs
    are further from the float network's, in root mean square, than the mean of those is.
    """
    wanted, found, what = outputs["float"].outputs.double(), outputs["chosen"].outputs.double(), None
    if task.has_accuracy:
        share = agreement(wanted, found)
        if share < LEAST_AGREEMENT:
            what = f"only {share:.1%} of its top answers are the float network's"
    else:
        far, spread = (found - wanted).square().mean().sqrt(), (wanted - wanted.mean()).square().mean().sqrt()
        if far > spread:
            what = f"its outputs are {far:.3g} from the float network's, whose spread is {spread:.3g}"
    if what is None:
        return None
    return (
        f"the deployed plan does not do what the network does: {what}; leave outliers out of the calibration data, "
        "take --ranges percentile and --bias-correction off, or give a larger budget"
    )


def said(contenders: list[Contender], chosen: Contender) -> str:
    """Why the chosen one of the contenders was chosen, in a sentence."""
    uniform = [contender for contender in contenders if contender.uniform]
    if not uniform:
        return "no uniform plan keeps within the budget; the searched plan is deployed"
    if chosen is contenders[0] and chosen.uniform:
        return f"the searched plan is uniform {chosen.uniform}, and is deployed"
    best = min(uniform, key=lambda contender: contender.divergence)
    name, searched = best.uniform, contenders[0]
    figures_ = f"{searched.divergence:.4g} against {best.divergence:.4g} nats from the float network on held-out data"
    if chosen is searched:
        return f"the searched plan is deployed: no worse than uniform {name}, the best uniform plan ({figures_})"
    return f"uniform {name} is deployed: the searched plan was worse ({figures_})"
