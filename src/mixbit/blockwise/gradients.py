"""The Fisher information of activations: weights of their errors."""

import torch
from torch import Tensor, fx

from mixbit.progress import track
from mixbit.reconstruction import Reconstruction


def squared_gradients(asked: Reconstruction, names: tuple[str, ...]) -> dict[tuple[int, str], Tensor]:
    """(batch, node) -> g^2, over its mean, with g the gradient of the network's information by the node's tensor.

    E[g^2] is the diagonal of the Fisher information, which weighs a small error's square in the KL divergence of the
    float network's output (Li et al. 2021, BRECQ, equation 10); one draw for each sample.
    """
    generator = torch.Generator().manual_seed(asked.seed)
    found = {}
    for number, inputs in enumerate(track(asked.batches, "weigh errors")):
        watching = _Watching(asked.graph.module, names)
        with torch.enable_grad():
            returned = watching.run(*asked.graph.leaves(inputs), enable_io_processing=False)
            value = asked.task.draw(asked.task.outputs(returned), generator)
            wanted = list(watching.watched.values())
            gradients = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
        found |= {(number, name): one.square() for name, one in zip(watching.watched, gradients, strict=True)}
    for name in names:
        mean = torch.stack([one.mean() for (_, other), one in found.items() if other == name]).mean()
        if mean > 0:
            found |= {key: one / mean for key, one in found.items() if key[1] == name}
    return found


class _Watching(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: tuple[str, ...]) -> None:
        super().__init__(module)
        self.names = names
        self.watched: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.names:
            if not value.requires_grad:
                value.requires_grad_()
            self.watched[n.name] = value
        return value
