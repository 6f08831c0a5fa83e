"""Targets: what each runtime stores, writes and runs; one runtime a file."""
