"""Whole runs."""

from mixbit.pipeline.settings import Settings as Settings
