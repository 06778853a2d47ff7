"""Metrics and evidence from live traffic, and two actors: the monitor and the watch."""
