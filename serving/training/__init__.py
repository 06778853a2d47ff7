"""The trainer actor: it learns one adapter at a time."""
