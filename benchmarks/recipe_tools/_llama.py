"""A Llama of random weights and its data, for the tools of language models."""

from pathlib import Path
from typing import Any

WORDS, LENGTH = 64, 32


def saved(folder: Path) -> Any:
    """The network, from the folder that it is written to first: tools read its configuration there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder).float().eval()


def data() -> Any:
    """Eight samples of random tokens."""
    import torch
    from datasets import Dataset

    torch.manual_seed(1)
    rows = torch.randint(0, WORDS, (8, LENGTH)).tolist()
    return Dataset.from_list([{"input_ids": row, "attention_mask": [1] * LENGTH} for row in rows])


def tokenizer() -> Any:
    """One that no text is given to: the data is tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="pad")
