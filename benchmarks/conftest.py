"""`pytest benchmarks` collects the tests alone: scripts hold no examples, and some import what only they need."""

from pathlib import Path

collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")]
