"""What a run survives: kills, signals, a second run, bad files, mistakes."""
