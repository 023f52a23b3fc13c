"""What scripts/bench.py can measure, by name, without what measures it (a test compares the two)."""

BASELINES_BY_NAME = ("ours", "bf16", "fp8-base", "plain", "loop", "original", "trl")
ANSWERING_BY_NAME = ("original", "plain", "static")
