"""Envelopes, keys, the trust file that says who may sign what, and rotation."""
