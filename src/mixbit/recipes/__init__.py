"""Recipes: a plan as the configuration of another tool, which then quantizes by it; no torch; one tool a file."""

from collections.abc import Callable

from mixbit.core import METHOD_PLACES, Methods, Plan

#: plan -> text of the tool's file.
Recipe = Callable[[Plan], str]
RECIPES: Methods[Recipe] = Methods("tool", METHOD_PLACES["recipes"])
