"""Speed and memory, side by side with the ways of others: python -m benchmarks.NAME."""
