"""The `lethe` command: one module for each group of commands."""
