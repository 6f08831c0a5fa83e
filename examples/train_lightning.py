"""The loop of train_plain.py in Lightning, which is not installed with mixbit: pip install lightning.

python -m examples.train_lightning OUT
"""

import sys
from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import mixbit as mb
from examples.train_plain import quantized
from mixbit.demo import data
from mixbit.graph import Graph
from mixbit.training import learnable, settled


class FineTuning(lightning.LightningModule):
    """An ordinary LightningModule that holds the graph's module."""

    def __init__(self, simulated: Graph) -> None:
        super().__init__()
        self.training_graph = learnable(simulated)
        self.module = self.training_graph.module

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self.module(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without weight decay, which scales do not need."""
        return torch.optim.AdamW(self.parameters(), lr=2e-4, weight_decay=0.0)


def main(out: Path, *, target: str = "onnxruntime", epochs: int = 3) -> None:
    """Train, export, run the file and compare."""
    graph, simulated = quantized(target)
    model = FineTuning(simulated)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(model, DataLoader(data.train_batches(), batch_size=None))  # a bare list would be several loaders
    done = settled(model.training_graph)
    mb.export(done, out)
    print(mb.verify(out, graph, done, data.test_batches()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage, from the folder that holds examples/: python -m examples.train_lightning OUT")
    main(Path(sys.argv[1]))
