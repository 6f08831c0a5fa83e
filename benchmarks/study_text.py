"""Which metric ranks plans best on transformers: 60 random plans of weights and inputs.

    python -m benchmarks.study_text encoder out         # all-MiniLM-L6-v2; the truth is 1 - cosine of embeddings
    python -m benchmarks.study_text language out        # the language model of benchmarks.gpt; the truth is nats

The encoder needs the extra `text`, the language model `MIXBIT_GPT`, which `python -m benchmarks.gpt` writes. Both read
the text `MIXBIT_TEXT`. They go on where they stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mixbit as mb
from benchmarks import gpt, paths
from mixbit.app.commands.steps import print_study

CHOICES = [f"w{weight}a{input_}" for weight in (3, 4, 6, 8) for input_ in (6, 8)]


def encoder() -> tuple[Any, ...]:
    """all-MiniLM-L6-v2 on 128 sentences to calibrate and 256 others; embeddings have length 1.

    The divergence of the Gaussian task, half the squared distance of two embeddings, is 1 less their cosine. There are
    no labels: metrics that need them say so.
    """
    from benchmarks import minilm  # noqa: PLC0415 the extra `text` is for the encoder alone

    texts = minilm.draw(minilm.sentences(paths.require("MIXBIT_TEXT")), 384, seed=0)
    network, batches = minilm.load(), minilm.batches(texts, 32)
    graph = mb.capture(network, batches[0])
    return graph, batches[:4], batches[4:], mb.Task.regression()


def language() -> tuple[Any, ...]:
    """The language model on 128 windows of held-out text to calibrate, and 512 others."""
    source = paths.require("MIXBIT_TEXT")
    batches = gpt.held_out_batches(source, 640, 32)
    graph = mb.capture(gpt.load(paths.require("MIXBIT_GPT"), source), batches[0][:1])
    return graph, batches[:4], batches[4:], mb.Task.language()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("encoder", "language"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--plans", type=int, default=60)
    parser.add_argument("--metrics", nargs="+")
    given = parser.parse_args(arguments)
    setup = encoder if given.network == "encoder" else language
    found = mb.study(
        setup, target="packed", out=given.out, choices=CHOICES, metrics=given.metrics, num_plans=given.plans
    )
    print_study(found)


if __name__ == "__main__":
    main()
