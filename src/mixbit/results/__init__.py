"""What the folder of a run holds beside plan, table and artefact, and how to verify and time it again."""
