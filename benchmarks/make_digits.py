"""Write `src/mixbit/demo/digits.safetensors` from scikit-learn's digits: `python benchmarks/make_digits.py`.

scikit-learn keeps the images in the order of their writers. They are shuffled here once, by a generator whose stream
numpy has frozen (NEP 19), so that the first images are a fair sample wherever the file is read.
"""

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from sklearn.datasets import load_digits

SEED = 0
PATH = Path(__file__).resolve().parents[1] / "src" / "mixbit" / "demo" / "digits.safetensors"


def main() -> None:
    """Convert, shuffle and write all 1,797 images, uint8 [1797, 8, 8] in 0..16, and labels, uint8 [1797]."""
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.RandomState(SEED).permutation(len(pixels))
    images, labels = pixels[order].reshape(-1, 8, 8).astype(np.uint8), classes[order].astype(np.uint8)
    PATH.write_bytes(save({"images": images, "labels": labels}))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
