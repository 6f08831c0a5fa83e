"""Runs on Ray clusters: what kills change, and what sharing out costs."""
