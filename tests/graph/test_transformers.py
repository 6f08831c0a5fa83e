"""Language models of the library transformers, as they come."""

import pytest
import torch

from mixbit.core.batches import Inputs, split_batches
from mixbit.graph.capture import capture

transformers = pytest.importorskip("transformers")
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8)
    ),
}


def batch(count, length):
    ids = torch.randint(0, 64, (count, length), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids, "attention_mask": (torch.arange(length) >= torch.arange(count)[:, None] % 3).long()}


@pytest.mark.parametrize("name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "qwen3"))])
def test_every_length_and_labels_in_the_batch(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    ((inputs, labels),) = split_batches(model, [{**batch(4, 10), "labels": torch.zeros(4, 10, dtype=torch.long)}])
    graph = capture(model, inputs, {"input_ids": [1], "attention_mask": [1]})
    assert labels.shape == (4, 10)
    assert len(graph.layers) > 9
    with torch.no_grad():
        for count, length in ((1, 7), (3, 12)):
            call = batch(count, length)
            torch.testing.assert_close(graph(**call)["logits"], model(**call)["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_decoder_with_its_cache(name):
    torch.manual_seed(0)
    model, ids = MODELS[name]().eval(), batch(4, 10)["input_ids"]

    def step(length):
        past = model(input_ids=ids[:, :length], use_cache=True).past_key_values
        return {"input_ids": ids[:, length : length + 2], "past_key_values": past}

    with torch.no_grad():
        graph = capture(model, step(6), {"past_key_values": [2]})
        for length in (6, 4):
            got = graph(**Inputs.of(step(length)).kwargs)["logits"]
            torch.testing.assert_close(got, model(**step(length)).logits, rtol=1e-4, atol=1e-5)
