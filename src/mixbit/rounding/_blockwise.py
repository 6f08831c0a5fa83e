"""Block after block, weights, biases and steps of activations that meet the float network's outputs again."""

from contextlib import closing
from dataclasses import asdict, dataclass, replace

import torch

from mixbit.biases import settle_biases
from mixbit.blockwise.blocks import Block
from mixbit.blockwise.pace import Pace
from mixbit.blockwise.parts import load, question_digest, save
from mixbit.blockwise.passes import Passes, side_by_side
from mixbit.blockwise.stretch import Stretch
from mixbit.errors import InvalidInput
from mixbit.exporting import copy_module
from mixbit.graph import Graph
from mixbit.progress import track
from mixbit.reconstruction import Reconstruction
from mixbit.rounding._learned import Learned, mixed
from mixbit.rounding._soft import beta_at

#: Steps of Adam: of the roundings; of biases, in root mean square errors of the block; of scales, relative to them.
RATE, BIAS_RATE, STEP_RATE = 0.1, 0.05, 1e-3
#: Weight of the penalty on undecided roundings, where the error of the nearest rounding is 1. It is large, so that most
#: weights decide early and the rest of them make up for it: with 1, ResNet-20's blocks end at twice the error.
PENALTY = 300.0
#: Share of the iterations without it; its exponent then, and at the end.
WARM_UP, FIRST_BETA, LAST_BETA = 0.1, 20.0, 2.0


@dataclass(frozen=True)
class Schedule:
    """How each block is learned.

    Attributes:
        iterations: Steps of Adam.
        batch_size: Samples of a step, at most those of a calibration batch.
        drop: Chance that a number of a coarse activation stays in float.
        fisher: Whether errors are weighted by the Fisher information of the block's outputs.
        cache_gib: GiB of activations held in memory.
    """

    iterations: int
    batch_size: int
    drop: float
    fisher: bool
    cache_gib: float

    def check(self, asked: Reconstruction) -> None:
        """Raise InvalidInput for an option out of range, or where there is no batch."""
        for name, value in (("iterations", self.iterations), ("batch_size", self.batch_size)):
            if value < 1:
                raise InvalidInput(f"rounding: {name}={value}; give a whole number of at least 1")
        if not 0 <= self.drop <= 1:
            raise InvalidInput(f"rounding: drop={self.drop}; give a share between 0 and 1")
        if not self.cache_gib >= 0:
            raise InvalidInput(f"rounding: cache_gib={self.cache_gib}; give a number of at least 0")
        if self.fisher and asked.task.own_loss is not None:
            raise InvalidInput("rounding: fisher=true draws labels from the model, and knows no loss of your own")
        if not asked.batches:
            raise InvalidInput("rounding: no batch to learn on; give at least one")


def reconstruct(asked: Reconstruction, blocks: tuple[Block, ...], schedule: Schedule, label: str) -> Graph:
    """The simulated graph with weights, biases and steps learned, one block after the other.

    For each block, min mean (z - z')^2 over roundings h of its weights, with z the float network's output of the block
    and z' that of the rounded one, which reads what the rounded blocks before it return. Roundings start where the
    weight is itself and are driven to 0 or 1 by the penalty. A block that the nearest rounding serves better keeps it.
    """
    schedule.check(asked)
    question = question_digest(asked, label, **asdict(schedule))
    simulated = replace(asked.simulated, module=copy_module(asked.simulated.module))
    trained = [one for one in simulated.module.parameters() if one.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    bar = track(range(len(blocks) * schedule.iterations), label)
    passing = side_by_side(asked, simulated, blocks, cache_gib=schedule.cache_gib, fisher=schedule.fisher)
    with closing(bar), closing(passing):
        for number, block, part, passes in passing:
            learned = Learned(asked, simulated, block, part)
            pace = Pace(schedule.iterations, bar, torch.Generator().manual_seed(asked.seed + number))
            known = load(asked.folder, f"block-{number}", question)
            if known is not None:
                learned.restore(known)
                pace.skip()
            else:
                _learn(learned, block, part, passes, schedule, pace)
                save(asked.folder, f"block-{number}", question, learned.state())
    settle_biases(simulated)  # steps of what they read may be others now
    for parameter in trained:
        parameter.requires_grad_(True)
    return simulated


@torch.enable_grad()
def _learn(learned: Learned, block: Block, part: Stretch, passes: Passes, schedule: Schedule, pace: Pace) -> None:
    """Learn one block, unless the nearest rounding is better in the end."""
    nearest = passes.mean_error(part, block.outputs)
    if not learned.weights or nearest == 0:
        pace.skip()
        return
    before = learned.state()
    learned.begin()
    optimizer = _optimizer(learned, nearest**0.5)
    drop = schedule.drop if learned.steps else 0.0
    by_rows = passes.parts_by_rows(part, block.outputs)
    for progress in pace.steps():
        batch, rows = passes.draw(schedule.batch_size, pace.generator, by_rows=by_rows)
        read = passes.inputs(part, batch, rows)
        if drop > 0:
            others = passes.float_inputs(part, batch, rows)
            read |= {name: mixed(read[name], other, drop, pace.generator) for name, other in others.items()}
        outputs = part.run(read, block.outputs, learned.replaced(drop, pace.generator))
        loss = passes.error(outputs, batch, rows) / nearest
        beta = beta_at(progress, WARM_UP, FIRST_BETA, LAST_BETA)
        if beta is not None:
            loss = loss + PENALTY * learned.undecided(beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned.settle()
    if not passes.mean_error(part, block.outputs) <= nearest:  # NaN is no improvement
        learned.restore(before)


def _optimizer(learned: Learned, error: float) -> torch.optim.Optimizer:
    groups = [{"params": [one.v for one in learned.weights.values()], "lr": RATE}]
    biases = [learned.module.get_parameter(name) for name in learned.biases]
    if biases:
        groups.append({"params": biases, "lr": BIAS_RATE * error})
    groups += [{"params": [one.scale], "lr": STEP_RATE * float(one.scale.detach())} for one in learned.steps]
    return torch.optim.Adam(groups)
