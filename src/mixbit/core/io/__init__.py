"""What comes and goes: files, unfinished work, named methods, progress, code of the user."""
