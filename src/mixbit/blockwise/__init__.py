"""Running a network one block at a time, in float and in integers side by side."""
