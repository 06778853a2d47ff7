"""Forgetting: what a forget command does to the weights.

It knows nothing of HTTP, Ray or registries.
"""
