"""The base class of every error that `serving` defines.

Each folder defines its own errors beside the code that raises them.
"""

from __future__ import annotations


class ServingError(Exception):
    """Something failed; the message says what was wrong and what to do."""
