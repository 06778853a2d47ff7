"""The root of every error that `serving` raises.

Each room defines its own errors beside the code that raises them; all of them are a `ServingError`.
"""

from __future__ import annotations


class ServingError(Exception):
    """Something that `serving` can't do; the message says what was wrong and what to do."""
