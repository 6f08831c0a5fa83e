import numpy as np
import torch
from hypothesis import given, strategies as st

from mixbit.quantization.statistics import RunningMean


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(-1e3, 1e3), st.integers(0, 99))
def test_the_running_mean_is_the_mean_with_its_standard_error(sizes, centre, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [centre + torch.randn(size, 2, 3, generator=generator, dtype=torch.float64) for size in sizes]
    running = RunningMean((2, 3))
    for part in parts:
        running.update(part)
    mean, error, count = running.result()
    samples = torch.cat(parts).numpy()
    assert count == len(samples)
    np.testing.assert_allclose(mean, samples.mean(0), rtol=1e-10)
    if count == 1:
        assert np.isinf(error).all()
    else:
        np.testing.assert_allclose(error, samples.std(0, ddof=1) / np.sqrt(count), rtol=1e-6)


def test_small_numbers_far_from_zero_keep_their_error():
    running, samples = RunningMean(()), torch.tensor([1e8, 1e8 + 1, 1e8 + 2], dtype=torch.float64)
    for sample in samples:
        running.update(sample[None])
    np.testing.assert_allclose(running.result()[1], 1 / np.sqrt(3))
