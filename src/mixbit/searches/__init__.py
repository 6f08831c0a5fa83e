"""Searches: from a table and a budget to a plan. Arrays only, never torch; one method a file."""

from mixbit.searches._problem import FEATURES as FEATURES, Problem as Problem, Trials as Trials
