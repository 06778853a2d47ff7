"""The trainer actor, which trains one adapter at a time, and its client."""
