"""Plans: layer -> scheme, a JSON file that people read, diff and edit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import model_of, read_model, write_text
from mixbit.core.scheme import Scheme


class Price(BaseModel):
    """What one limit of the budget costs.

    Attributes:
        used: Of the limited resource, in the unit of its name.
        price: The shadow price: how much the smallest loss falls for each unit that the limit is looser, in the linear
            relaxation; 0 where the limit does not bind.
        looser: A limit that is 5 % looser.
        gain: How much the predicted loss falls with it, exactly.
        widens: Layer -> `w4a8 to w6a8`, what changes then, the largest gain first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    used: float
    price: float
    looser: float
    gain: float
    widens: dict[str, str]


class Plan(BaseModel):
    """Which scheme each layer takes, what that was predicted to cost, and how it was made.

    Attributes:
        target: Name of the target that the plan is for.
        fingerprint: Which model the plan is for: see `model_fingerprint`.
        layers: Layer -> scheme as text, in execution order.
        budget: The limits that the plan was made under, or `max_drop`; empty for a plan written by hand.
        predicted: What the search expected: `loss`, its `standard_error` where known, `weight_bytes`, `weight_ratio`,
            `mean_bits`, `bit_ops`, `latency_ms` where the table holds it.
        prices: Limit of the budget -> what it costs; empty unless asked for.
        made_by: The method behind it, as text for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Annotated[int, Field(ge=1, le=1)] = 1
    target: str
    fingerprint: str
    layers: Annotated[dict[str, str], Field(min_length=1)]
    budget: dict[str, float] = {}
    predicted: dict[str, float] = {}
    prices: dict[str, Price] = {}
    made_by: str = "hand"

    @field_validator("layers")
    @classmethod
    def _schemes_are_known(cls, layers: dict[str, str]) -> dict[str, str]:
        for name, scheme in layers.items():
            try:
                Scheme.parse(scheme)
            except InvalidInput as error:
                raise ValueError(f"layer {name}: {error}") from error
        return layers

    def scheme(self, layer: str) -> Scheme:
        """The scheme of one layer, by name."""
        return Scheme.parse(self.layers[layer])

    def check_model(self, layers: Iterable[str], model_fingerprint: str) -> None:
        """Raise InvalidInput unless the plan names exactly these layers of this model."""
        known = set(layers)
        for name in self.layers:
            if name not in known:
                raise InvalidInput(f"plan: layer {name!r} is not in this model; it has {_some(known)}")
        if missing := known - self.layers.keys():
            raise InvalidInput(f"plan: no scheme for {_some(missing)}; add them or plan again for this model")
        if self.fingerprint != model_fingerprint:
            raise InvalidInput(
                f"plan: made for another model (fingerprint {self.fingerprint}, this one has {model_fingerprint}): "
                "a layer's shape differs; plan again for this model"
            )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        write_text(Path(path), self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan; raise InvalidInput that names the first key, layer or scheme that is wrong."""
        return read_model(Path(path), cls, "a plan")

    @classmethod
    def from_json(cls, text: str, place: str) -> "Plan":
        """Read a plan from JSON text; `place` names its origin in errors."""
        return model_of(text, place, cls, "a plan")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
