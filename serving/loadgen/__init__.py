"""Sends HTTP traffic from another process, for the demo, tests and benchmarks."""
