"""A small causal language model of characters, 0.8 million parameters: `benchmarks.gpt`.

Weights are those that `python -m benchmarks.gpt` trains (`MIXBIT_GPT`) on the user's text (`MIXBIT_TEXT`), whose
licence is that of its source (tinyshakespeare: public domain). The measure is perplexity per character.
"""

import torch

from benchmarks import gpt, paths
from benchmarks.networks._network import PERPLEXITY, SEED, Network, batches
from mixbit.core.task import Task

NUM_CALIBRATION, NUM_EVALUATION = 128, 512


def load() -> Network:
    """The model, 128 windows of what it was trained on to calibrate, and 512 of the held-out tenth."""
    source = paths.require("MIXBIT_TEXT")
    seen, *_ = gpt.encoded(source)
    windows = gpt.windows(seen, NUM_CALIBRATION, torch.Generator().manual_seed(SEED))
    evaluation = gpt.held_out_batches(source, NUM_EVALUATION, 64, SEED)
    model = gpt.load(paths.require("MIXBIT_GPT"), source)
    return Network("gpt", model, batches(32, *windows), evaluation, Task.language(), PERPLEXITY)
