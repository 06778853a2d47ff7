"""Backbones: frozen ViTs, what an adapter may change in them, and how outputs are compared."""
