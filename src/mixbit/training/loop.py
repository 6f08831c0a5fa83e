"""The training loop, what it minimizes, and graphs whose scales can be trained."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixbit.core import Batch, Inputs, InvalidInput, Stored, Task, checked_class, loaded, outputs_of, split_batch, track
from mixbit.graph import Graph, returned_by
from mixbit.quantization.biases import make_room_for_biases, settle_biases
from mixbit.quantization.quantizer import quantizers_of


@dataclass(frozen=True)
class Objective:
    """(1 - distil) * loss(outputs, labels) + distil * T^2 * KL(teacher / T, outputs / T), a mean over samples.

    Distillation after Hinton et al. 2015 (arXiv:1503.02531); the divergence is the task's, and T the temperature.

    Without a teacher, the float graph, it is the loss alone; for batches without labels, the distillation alone, which
    is also all that outputs without labels have. A regression's divergence is the same at each temperature.
    """

    task: Task
    teacher: Graph | None
    distil: float
    temperature: float

    def __call__(self, graph: Graph, inputs: Inputs, labels: Tensor | None) -> Tensor:
        """The loss of one batch; NaN where the graph returns NaN or inf.

        Raises InvalidInput without labels and teacher, or where they do not fit the outputs.
        """
        if labels is None and self.teacher is None:
            raise InvalidInput("no labels to train on: give batches that end with them, or a teacher")
        returned = returned_by(graph, inputs)
        for output in outputs_of(returned).values():
            if output.is_floating_point() and not torch.isfinite(output).all():
                return output.new_tensor(torch.nan)
        share = 0.0 if self.teacher is None else 1.0 if labels is None else self.distil
        parts = []
        if share < 1:
            parts.append((1 - share) * self.task.loss(returned, labels))
        outputs = self.task.read(returned)
        unlabelled = share < 1 and bool(self.task.unlabelled(outputs))
        if self.teacher is not None and (share > 0 or unlabelled):
            with torch.no_grad():
                wanted = self.task.read(returned_by(self.teacher, inputs))
            if share > 0:
                parts.append(share * self.task.divergences(wanted, outputs, self.temperature).mean())
            if unlabelled:
                parts.append((1 - share) * self.task.unlabelled_divergences(wanted, outputs).mean())
        return torch.stack(parts).sum()


@checked_class
@dataclass(frozen=True)
class Training:
    """How a graph is trained: AdamW, its rate rising and then falling along half a cosine, gradients clipped.

    Attributes:
        lr: Largest learning rate of weights and biases.
        scale_lr: That of the scales, in shares of each.
        weight_decay: Of weights, not of biases and scales.
        distil: Share of the distillation in the loss where there are both a teacher and labels, 0 to 1.
        temperature: Of the distillation.
        warm_up: Share of the steps in which the rate rises.
        max_norm: Largest norm of a step's gradient; longer ones are shortened.
        seed: Of the order of batches, and of what a loader draws with torch's own generator.
    """

    lr: float = 2e-4
    scale_lr: float = 3e-4
    weight_decay: float = 0.0
    distil: float = 1.0
    temperature: float = 2.0
    warm_up: float = 0.05
    max_norm: float = 10.0
    seed: int = 0

    def check(self) -> None:
        """Raise InvalidInput for a value that is no rate, share or norm."""
        for name in ("lr", "temperature", "max_norm", "scale_lr", "weight_decay", "distil", "warm_up"):
            value = getattr(self, name)
            if name in ("distil", "warm_up") and not 0 <= value <= 1:
                raise InvalidInput(f"{name}={value}: give a share between 0 and 1")
            if name in ("lr", "temperature", "max_norm") and not 0 < value < math.inf:
                raise InvalidInput(f"{name}={value}: give a positive number")
            if not 0 <= value < math.inf:
                raise InvalidInput(f"{name}={value}: give 0 or a positive number")


def learnable(graph: Graph) -> Graph:
    """A copy whose scales are parameters: a module for any training loop, in which roundings pass gradients.

    A scale's gradient is multiplied by 1 / sqrt(N high), N the numbers that share the scale (of an activation, those of
    one sample) and high the largest integer of the format: Esser et al. 2020 (LSQ, arXiv:1902.08153), section 2.2. Zero
    points stay as they are, and so do ranges that are taken at run time. Batch norms are folded and dropouts left out,
    as capture did. A graph in float comes back as a plain copy. `settled` ends the training.

    Args:
        graph: A captured or a quantized graph; it is left as it is.
    """
    copied = graph.copy()
    for quantizer in quantizers_of(copied):
        if quantizer.format.floating is None and not quantizer.format.dynamic:
            if quantizer.axis is None:
                numel = math.prod(copied.shapes[quantizer.tensor]) / copied.batch_size
            else:
                numel = copied.parameter(quantizer.tensor).numel()
            sharers = numel / quantizer.scale.numel()
            quantizer.learn_scale(1 / math.sqrt(sharers * quantizer.format.integer_range[1]))
    return copied


@torch.no_grad()
def settled(graph: Graph) -> Graph:
    """A copy that targets can store: scales fixed and positive, biases whole multiples of their steps.

    A bias's step is input scale x weight scale, as in `quantize`; a weight's scale under which a bias would not fit
    into 32 bits is raised. Weights that a sparse format leaves out become 0.

    Args:
        graph: What `learnable` returned, trained; it is left as it is.
    """
    copied = graph.copy()
    for quantizer in quantizers_of(copied):
        quantizer.settle_scale()
        if quantizer.mask is not None:
            copied.parameter(quantizer.tensor).mul_(quantizer.mask)
    make_room_for_biases(copied)
    settle_biases(copied)
    return copied


#: A scale changes by no more than this factor in one step.
SCALE_LIMITS = (0.5, 2.0)


@dataclass(frozen=True)
class Trained:
    """The settled graph of the best epoch, and the losses on held-out data: before the first epoch, then after each."""

    graph: Graph
    losses: tuple[float, ...]

    @property
    def best(self) -> int:
        """The epoch whose graph it is; 0 where none was better than the graph before training."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)


class Loop:
    """A copy of a quantized or float graph in training, its optimizer, and the best state so far."""

    def __init__(self, graph: Graph, objective: Objective, settings: Training, epochs: int, num_batches: int) -> None:
        self.graph, self.objective, self.settings = learnable(graph), objective, settings
        self.epochs, self.num_batches = epochs, num_batches
        self.scales = [quantizer.scale for quantizer in quantizers_of(self.graph) if quantizer.learns]
        self.optimizer = torch.optim.AdamW(_groups(self.graph, self.scales, settings))
        self.largest = [group["lr"] for group in self.optimizer.param_groups]
        self.losses: list[float] = []
        self.best: dict[str, Tensor] = {}

    def run(
        self,
        batches: Iterable[Any],
        held_out: Sequence[Batch],
        stored: Stored | None,
        store: Callable[[dict[str, Tensor], list[float]], None],
    ) -> Trained:
        """Go through the epochs after the one that is stored, store each, and settle the best."""
        if stored is None:
            self._score(held_out)
        else:
            self._restore(stored, batches)
        devices = [self.graph.device] if self.graph.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            for epoch in range(len(self.losses), self.epochs + 1):
                torch.manual_seed(self.settings.seed + (epoch << 32))  # so that an epoch needs nothing of the last one
                self._epoch(epoch, batches)
                self._score(held_out)
                store(self._tensors(batches), self.losses)
        best = settled(self.graph)
        best.module.load_state_dict(self.best)
        return Trained(best, tuple(self.losses))

    @torch.enable_grad()
    def _epoch(self, epoch: int, batches: Iterable[Any]) -> None:
        if isinstance(batches, Sequence):  # a loader has an order of its own; that of a list is drawn
            ordered = map(batches.__getitem__, torch.randperm(len(batches)).tolist())
        else:
            ordered = loaded(batches)
        number = -1
        for number, batch in enumerate(track(ordered, f"fine-tune, epoch {epoch} of {self.epochs}", self.num_batches)):
            place = f"epoch {epoch}, step {number}"
            step, steps = (epoch - 1) * self.num_batches + number, self.epochs * self.num_batches
            share = rate(step, steps, self.settings.warm_up)
            for group, largest in zip(self.optimizer.param_groups, self.largest, strict=True):
                group["lr"] = largest * share
            self.optimizer.zero_grad()
            loss = self._loss(self.graph, batch, place)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.graph.module.parameters(), self.settings.max_norm)
            if not torch.isfinite(norm):
                raise _diverged(place, "gradient", norm, self.settings.lr)
            self._step()
        if hasattr(batches, "__len__") and number + 1 != self.num_batches:
            raise InvalidInput(
                f"epoch {epoch}: the loader yields {number + 1} batches, and its len() says {self.num_batches}, by "
                "which the learning rate falls; mend its __len__"
            )

    def _step(self) -> None:
        """One step of the optimizer; what it takes from a scale is a share of that scale, however small it is."""
        before = [scale.detach().clone() for scale in self.scales]
        self.optimizer.step()
        with torch.no_grad():
            for scale, old in zip(self.scales, before, strict=True):
                scale.copy_(old * (1 + scale - old).clamp(*SCALE_LIMITS))

    def _loss(self, graph: Graph, batch: Any, place: str) -> Tensor:
        try:
            (pair,) = self.objective.task.aligned([split_batch(batch, len(graph.example.args))])
            loss = self.objective(graph, *pair)
        except InvalidInput as error:
            raise InvalidInput(f"{place}: {error}") from error
        if not torch.isfinite(loss):
            raise _diverged(place, "loss", loss, self.settings.lr)
        return loss

    @torch.no_grad()
    def _score(self, held_out: Sequence[Batch]) -> None:
        """Take the loss on held-out data, biases rounded, and the state where it is the least so far."""
        place, total, count, graph = f"held-out data after epoch {len(self.losses)}", 0.0, 0, settled(self.graph)
        for batch in track(held_out, "evaluate"):
            total += float(self._loss(graph, batch, place)) * batch[0].batch_size
            count += batch[0].batch_size
        self.losses.append(total / count)
        if self.losses[-1] < min(self.losses[:-1], default=math.inf):
            self.best = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}

    def _tensors(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """All that the next epoch starts from."""
        tensors = {f"module.{name}": tensor for name, tensor in self.graph.module.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": tensor for key, tensor in state.items()}
        generator = generator_of(batches)
        return tensors if generator is None else tensors | {"generator": generator.get_state()}

    def _restore(self, stored: Stored, batches: Iterable[Any]) -> None:
        """Set what `_tensors` returned, and the losses."""

        def part(prefix: str) -> dict[str, Tensor]:
            named = stored.tensors.items()
            return {name.removeprefix(prefix): tensor for name, tensor in named if name.startswith(prefix)}

        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in part("optimizer.").items():
            number, _, key = name.partition(".")
            state[int(number)][key] = tensor
        self.losses, self.best = stored.notes, part("best.")
        self.graph.module.load_state_dict(part("module."))
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": dict(state)})
        generator = generator_of(batches)
        if generator is not None and "generator" in stored.tensors:
            generator.set_state(stored.tensors["generator"])


def _groups(graph: Graph, scales: list[Tensor], settings: Training) -> list[dict[str, Any]]:
    """Weights, biases and scales, each with its own rate and decay."""
    others = [each for each in graph.module.parameters() if each.requires_grad and each not in set(scales)]
    weights, biases = [each for each in others if each.ndim > 1], [each for each in others if each.ndim <= 1]
    groups = [
        {"params": weights, "lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": biases, "lr": settings.lr, "weight_decay": 0.0},
        {"params": scales, "lr": settings.scale_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def rate(step: int, steps: int, warm_up: float) -> float:
    """Share of the largest rate: (t + 1) / w for the first w steps, then (1 + cos(pi (t - w) / (T - w))) / 2."""
    rising = warm_up * steps
    if step < rising:
        return min(1.0, (step + 1) / rising)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1.0, steps - rising))))


def generator_of(batches: Iterable[Any]) -> torch.Generator | None:
    """The loader's own generator; None where it draws with torch's."""
    generator = getattr(batches, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None


def _diverged(place: str, what: str, value: Tensor, lr: float) -> InvalidInput:
    return InvalidInput(
        f"{place}: the {what} is {float(value)}; train with a lower lr than {lr:g}. A checkpoint, where one is kept, "
        "holds the epochs before"
    )
