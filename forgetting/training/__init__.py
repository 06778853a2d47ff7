"""Gradient descent: pretraining a backbone, and the sparse low-rank pairs of a forget task."""
