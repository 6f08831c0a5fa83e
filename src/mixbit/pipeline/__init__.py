"""Whole runs, and what their folder holds."""

from mixbit.pipeline.settings import Settings as Settings
