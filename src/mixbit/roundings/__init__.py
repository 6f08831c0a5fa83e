"""Roundings: how weights become integers; one method a file."""

from mixbit.roundings._input import ROUNDINGS as ROUNDINGS, Rounding as Rounding, RoundingInput as RoundingInput
