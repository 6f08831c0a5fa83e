"""The embedded demo: a small residual network on handwritten digits, through the whole loop for two runtimes."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mixbit.core import Budget, check_writable_folder, find_target
from mixbit.demo.data import BATCH_SIZE, calibration_batches, test_batches
from mixbit.demo.network import trained
from mixbit.pipeline.auto import auto_quantize
from mixbit.pipeline.deploy import Deployed
from mixbit.pipeline.settings import Settings
from mixbit.targets.latency import paired_latency_ms

TARGETS = ("openvino", "onnxruntime")
MIXED = Budget(mean_bits=3)
MODEL = "mixbit.demo.network:trained"
COLUMNS = ("target", "network", "accuracy", "file bytes", "weight bytes", f"ms, batch {BATCH_SIZE}", "agreement")


@dataclass(frozen=True)
class Row:
    """One network in one runtime, as deployed; latency of a batch of BATCH_SIZE."""

    target: str
    network: str
    accuracy: float
    file_bytes: int
    weight_bytes: int
    latency_ms: float
    agreement: float

    def cells(self) -> tuple[str, ...]:
        """Under COLUMNS."""
        sizes = f"{self.file_bytes:,}", f"{self.weight_bytes:,}"
        share, agreement = f"{self.accuracy:.2%}", f"{self.agreement:.2%}"
        return self.target, self.network, share, *sizes, f"{self.latency_ms:.3f}", agreement


def run_demo(out: Path | None) -> list[Row]:
    """Deploy float, uniform int8 and a mixed plan for each runtime; one row each, latencies of a runtime paired.

    Args:
        out: Folder to keep the results in, `TARGET-float`, `TARGET-int8` and `TARGET-mixed`; None keeps nothing.

    Raises:
        InvalidInput: the folder is not empty, or a runtime is not installed.
        TargetMismatch: an artefact is not as promised.
    """
    if out is not None:
        check_writable_folder(out, force=False)
    rows = []
    with TemporaryDirectory() if out is None else nullcontext(out) as folder:
        for target in TARGETS:
            rows.extend(_deploy(target, Path(folder)))
    return rows


def _deploy(target: str, folder: Path) -> list[Row]:
    model, calibration, test = trained(), calibration_batches(), test_batches()
    wanted = {
        "float": (["float"], Budget(weight_ratio=1)),
        "int8": (["w8a8"], Budget(weight_ratio=1)),
        "mixed": (None, MIXED),
    }
    deployed: dict[str, Deployed] = {}
    for name, (choices, budget) in wanted.items():
        deployed[name] = auto_quantize(
            model,
            calibration,
            target=target,
            budget=budget,
            out=folder / f"{target}-{name}",
            eval_batches=test,
            settings=Settings(choices=choices, model=MODEL),
        )
        deployed[name].comparison.check()
    load = find_target(target).load
    runs = {name: load(one.folder, batch_size=BATCH_SIZE).run for name, one in deployed.items()}
    latency = paired_latency_ms(runs, [test[0][0].numpy()], f"time {target}")
    return [_row(target, name, one, latency[name]) for name, one in deployed.items()]


def _row(target: str, name: str, one: Deployed, latency_ms: float) -> Row:
    found = one.comparison
    network = name if name != "mixed" else f"mixed, {MIXED}"
    return Row(
        target, network, found.accuracy or 0.0, found.file_bytes, found.weight_bytes, latency_ms, found.agreement or 0.0
    )
