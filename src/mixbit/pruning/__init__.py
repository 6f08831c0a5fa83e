"""Pruning: channels removed from a float graph."""
