"""Architectures that people deploy, small and briefly trained; `python -m benchmarks.zoo` judges mixbit on them."""
