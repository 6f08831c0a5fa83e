"""Whole runs, and what their folder holds."""
