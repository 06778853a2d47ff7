"""The import path that `grpc_servicer_functions` was told before the rooms were made."""

from __future__ import annotations

from serving.api.inference_protocol.rpc import add_to_server

__all__ = ["add_to_server"]
