"""Kept for settings of Ray Serve that name `serving.inference_protocol.rpc.add_to_server`."""
