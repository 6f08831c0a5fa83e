"""report.html: the folder of a run as one page, for people."""
