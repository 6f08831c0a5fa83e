"""Targets: what each runtime stores, writes and runs; one runtime a file."""

from mixbit.targets._layers import Watched as Watched, first_rows as first_rows, watched as watched
