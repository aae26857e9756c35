"""What it costs, measured side by side in one run. Run by hand: `python -m tests.benchmarks.NAME`."""
