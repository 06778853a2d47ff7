"""Re-exports `add_to_server` for settings with the older `grpc_servicer_functions` path."""

from __future__ import annotations

from serving.api.inference_protocol.rpc import add_to_server

__all__ = ["add_to_server"]
