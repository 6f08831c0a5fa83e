"""The captured network: its layers, how to run it and look on."""
