"""Models: what MODEL of the command line may be; one form a file."""
