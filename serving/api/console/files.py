"""The console's static files, and the headers under which a browser may use them.

No build step and no other host: what stands in this folder is what the browser gets.
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
        # No string ever becomes markup or code: class names and reasons are other people's text.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""The page's Content-Security-Policy: its own files, its own server, nothing inline."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time: the page and its script must be of one version.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class File:
    """`tag`: its entity tag, quoted as the header wants it."""

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
