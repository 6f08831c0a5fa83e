"""Datasets: what DATA of the command line may be; one form a file."""
