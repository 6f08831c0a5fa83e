"""Trees of tensors: what models take and return, made of plain containers that torch can flatten."""

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx._pytree import register_pytree_flatten_spec
from torch.utils import _pytree as pytree


class Fields(dict[str, Any]):
    """The fields of an object that a model returned, those that are None left out; by name or as attributes."""

    def __getattr__(self, name: str) -> Any:
        """The field of that name."""
        if name in self:
            return self[name]
        raise AttributeError(name)


class KeyValues:
    """The keys and values of a decoder's cache, with what makes a cache of them again.

    Attributes:
        pairs: Keys and values of each layer, as in `DynamicCache` of the library transformers: [N, heads, T, size].
        emptied: The cache without its tensors.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], emptied: Any) -> None:
        self.pairs, self.emptied = pairs, emptied

    @classmethod
    def of(cls, cache: Any) -> "KeyValues":
        """Of such a cache, which is left as it is."""
        emptied = _with_layers(cache, [(None, None)] * len(cache.layers))
        return cls([(layer.keys, layer.values) for layer in cache.layers], emptied)

    def cache(self) -> Any:
        """A cache of these keys and values."""
        return _with_layers(self.emptied, self.pairs)


class _Emptied:
    """The emptied cache in the structure of a tree, where structures of caches of one kind are equal."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Emptied) and self._kind == other._kind

    def __hash__(self) -> int:
        return hash(self._kind)

    @property
    def _kind(self) -> tuple[type, int]:
        return type(self.cache), len(self.cache.layers)


def _with_layers(cache: Any, pairs: list[Any]) -> Any:
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    for layer, (keys, values) in zip(copied.layers, pairs, strict=True):
        layer.keys, layer.values = keys, values
    return copied


def _named_fields(each: Any) -> tuple[list[Any], tuple[str, ...]]:
    return [(pytree.MappingKey(name), value) for name, value in each.items()], tuple(each)


def _numbered_pairs(each: Any) -> tuple[list[Any], _Emptied]:
    return [(pytree.SequenceKey(place), pair) for place, pair in enumerate(each.pairs)], _Emptied(each.emptied)


pytree.register_pytree_node(
    Fields,
    lambda each: (list(each.values()), tuple(each)),
    lambda values, names: Fields(zip(names, values, strict=True)),
    serialized_type_name="mixbit.Fields",
    flatten_with_keys_fn=_named_fields,
)
pytree.register_pytree_node(
    KeyValues,
    lambda each: (each.pairs, _Emptied(each.emptied)),
    lambda pairs, context: KeyValues(list(pairs), context.cache),
    flatten_with_keys_fn=_numbered_pairs,
)
register_pytree_flatten_spec(KeyValues, lambda each, _: each.pairs)


def is_cache(value: Any) -> bool:
    """Whether it is a cache that holds keys and values layer by layer."""
    layers = getattr(value, "layers", None)
    held = isinstance(layers, list) and all(isinstance(getattr(layer, "keys", 0), Tensor | None) for layer in layers)
    return held and hasattr(value, "update")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given, where it is one that it made."""
    while isinstance(model, nn.Module) and "_orig_mod" in model._modules:
        model = model.get_submodule("_orig_mod")
    return model


def without_caches(value: Any) -> Any:
    """What a model takes, with caches as `KeyValues`."""
    return pytree.tree_map(lambda leaf: KeyValues.of(leaf) if is_cache(leaf) else leaf, value)


def with_caches(value: Any) -> Any:
    """What a model takes, with the caches of `KeyValues`."""
    return pytree.tree_map(lambda leaf: leaf.cache() if is_key_values(leaf) else leaf, value, is_leaf=is_key_values)


def with_pairs(value: Any) -> Any:
    """A tree with the pairs of `KeyValues`."""
    return pytree.tree_map(lambda leaf: leaf.pairs if is_key_values(leaf) else leaf, value, is_leaf=is_key_values)


def is_key_values(value: Any) -> bool:
    """Whether it is a `KeyValues`."""
    return isinstance(value, KeyValues)


def plain(returned: Any, *, caches: bool = False) -> Any:
    """What a model returned, with objects that torch cannot flatten as `Fields`, tuples and lists.

    Dataclasses and mappings become `Fields`. With `caches` a cache becomes pairs of keys and values; otherwise, and if
    it is of another kind, None.
    """

    def replaced(leaf: Any) -> Any:
        if is_cache(leaf) and caches:
            return tuple((layer.keys, layer.values) for layer in leaf.layers)
        if is_cache(leaf) or any(kind.__module__ == "transformers.cache_utils" for kind in type(leaf).__mro__):
            return None
        if is_dataclass(leaf) and not isinstance(leaf, type):
            named: Any = {field.name: getattr(leaf, field.name) for field in fields(leaf)}
        elif isinstance(leaf, Mapping):
            named = leaf
        elif isinstance(leaf, tuple | list) and not isinstance(leaf, torch.Size):
            return (tuple if isinstance(leaf, tuple) else list)(plain(each, caches=caches) for each in leaf)
        else:
            return leaf
        values = {str(name): plain(value, caches=caches) for name, value in named.items()}
        return Fields({name: value for name, value in values.items() if value is not None})

    return pytree.tree_map(replaced, returned)
