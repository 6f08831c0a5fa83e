"""Where jobs run: on this machine or on a Ray cluster, and how many at once."""

from dataclasses import dataclass
from typing import Literal

from mixbit.core.arguments import checked_class
from mixbit.core.errors import InvalidInput


@checked_class
@dataclass(frozen=True)
class Engine:
    """Where jobs run. Each takes one thread, so that its numbers do not depend on how many run beside it.

    Attributes:
        name: `local`, this machine, or `ray`.
        processes: How many work at once; with `local`, a single one is this process.
        address: With `ray`, which cluster: `auto` for the one that this machine belongs to, HOST:PORT,
            ray://HOST:PORT, or None: that of the environment variable RAY_ADDRESS, else one that is started on this
            machine for the run.

    Raises:
        InvalidInput: no process, an unknown name, or an address without Ray.
    """

    name: Literal["local", "ray"] = "local"
    processes: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise InvalidInput(f"processes={self.processes}: give 1 or more (--processes)")
        if self.address is not None and self.name != "ray":
            raise InvalidInput(f"--ray-address {self.address}: is of --engine ray, and the engine is {self.name}")

    @property
    def is_this_process(self) -> bool:
        """Whether jobs run in this process, where nothing has to travel."""
        return self.name == "local" and self.processes == 1
