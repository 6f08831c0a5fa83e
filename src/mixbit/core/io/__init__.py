"""Around a computation: files, unfinished work, methods by name, the terminal, the user's code."""
