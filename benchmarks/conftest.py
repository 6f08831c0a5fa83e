"""`pytest benchmarks` collects the tests alone: scripts hold no examples, and some import what only they need."""

from pathlib import Path

HERE = Path(__file__).parent
collect_ignore = [path.name for path in HERE.glob("*.py") if not path.name.startswith("test_")]
collect_ignore_glob = ["networks/*", "contest_tools/*"]
