"""Where the benchmarks find data and weights that the repository does not hold: environment variables.

`MIXBIT_CIFAR10` is a zip file or a folder of JPEG images, `MIXBIT_RESNET20` a file of weights, `MIXBIT_TEXT` a text,
`MIXBIT_GPT` the weights that `python -m benchmarks.gpt` writes. Without them the folder `shared` beside the repository
is looked at. `MIXBIT_CACHE` is a folder for what benchmarks fetch or make themselves; without it they use one in the
user's cache.
"""

import os
from pathlib import Path

from mixbit.core.errors import InvalidInput

SHARED = Path(__file__).resolve().parents[2] / "shared"
DEFAULTS = {
    "MIXBIT_CIFAR10": SHARED / "data" / "cifar10-jpeg.zip",
    "MIXBIT_RESNET20": SHARED / "models" / "resnet20-cifar10.safetensors",
    "MIXBIT_GPT": SHARED / "models" / "gpt-shakespeare.safetensors",
    "MIXBIT_TEXT": SHARED / "data" / "tinyshakespeare.txt",
}


def find(variable: str) -> Path | None:
    """The path in the environment variable, else its default if that exists, else None.

    Raises:
        InvalidInput: when the variable is set to a path that does not exist.
    """
    path = Path(os.environ.get(variable) or DEFAULTS[variable])
    if path.exists():
        return path
    if os.environ.get(variable):
        raise InvalidInput(f"{variable}={path}: there is no such file or folder; correct or unset the variable")
    return None


def require(variable: str) -> Path:
    """The path that `find` finds.

    Raises:
        InvalidInput: when there is none.
    """
    path = find(variable)
    if path is None:
        raise InvalidInput(f"{DEFAULTS[variable]}: there is no such file; set {variable} to where it is")
    return path


def cache() -> Path:
    """The folder of what benchmarks fetch or make, which exists then: MIXBIT_CACHE, or one in the user's cache.

    Raises:
        InvalidInput: when it cannot be made.
    """
    path = Path(os.environ.get("MIXBIT_CACHE") or Path.home() / ".cache" / "mixbit-benchmarks").absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be made a folder ({error}); set MIXBIT_CACHE to one that can") from None
    return path
