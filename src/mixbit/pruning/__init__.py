"""Pruning: channels removed from a graph, and masks of the weights that stay in sparse formats."""
