"""What fine-tuning makes small: the task's loss, the distance from a teacher, or a mixture of both."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixbit.errors import InvalidInput
from mixbit.evaluation import returned_by
from mixbit.graph import Graph
from mixbit.task import Inputs, Task, output_of


@dataclass(frozen=True)
class Objective:
    """(1 - distil) * loss(outputs, labels) + distil * T^2 * KL(teacher / T, outputs / T), a mean over samples.

    Distillation after Hinton et al. 2015 (arXiv:1503.02531); the divergence is the task's own, and T the temperature.

    Attributes:
        task: Whose loss and divergence.
        teacher: The float graph; without one, the loss alone.
        distil: Share of the distillation where a batch has labels; without labels it is all.
        temperature: Of both distributions; a regression's divergence is the same at each.
    """

    task: Task
    teacher: Graph | None
    distil: float
    temperature: float

    def __call__(self, graph: Graph, inputs: Inputs, labels: Tensor | None) -> Tensor:
        """The loss of one batch; NaN where the graph returns NaN or inf.

        Raises:
            InvalidInput: neither labels nor a teacher, or they do not fit the outputs.
        """
        if labels is None and self.teacher is None:
            raise InvalidInput("no labels to train on: give batches that end with them, or a teacher")
        returned = returned_by(graph, inputs)
        output = output_of(returned)
        if output is not None and not torch.isfinite(output).all():
            return output.new_tensor(torch.nan)
        share = 0.0 if self.teacher is None else 1.0 if labels is None else self.distil
        parts = []
        if share < 1:
            parts.append((1 - share) * self.task.loss(returned, labels))
        if share > 0 and self.teacher is not None:
            parts.append(share * self._distance(self.teacher, inputs, self.task.outputs(returned)))
        return torch.stack(parts).sum()

    def _distance(self, teacher: Graph, inputs: Inputs, outputs: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.task.outputs(returned_by(teacher, inputs))
        if wanted.shape != outputs.shape:
            raise InvalidInput(
                f"teacher: returns {list(wanted.shape)}, the graph {list(outputs.shape)}; give the float graph of the "
                "same model"
            )
        return self.temperature**2 * self.task.divergence(wanted / self.temperature, outputs / self.temperature).mean()
