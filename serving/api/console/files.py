"""The console's static files, and the security headers that are sent with them.

There is no build step and no other host: the browser gets the files of this folder as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

PAGE = "console.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No string becomes markup or code: class names and reasons may hold anybody's text.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""The page's Content-Security-Policy: only its own files and server, and nothing inline."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Checked at each load: the page and its scripts must be of the same version.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class File:
    """One static file. `tag`: its entity tag, quoted as in the header."""

    content: bytes
    type: str
    tag: str


def read_files() -> dict[str, File]:
    """Every static file of this folder, by name."""
    files = {}
    for entry in resources.files(__package__).iterdir():
        kind = TYPES.get(f".{entry.name.rpartition('.')[2]}")
        if kind is not None:
            content = entry.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            files[entry.name] = File(content, kind, f'"{digest[:32]}"')
    return files
