"""Forgetting: what a forget command does to the weights.

Knows nothing of HTTP, Ray or registries.
"""
