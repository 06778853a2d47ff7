"""An older import path, for settings of Ray Serve that still name
`serving.inference_protocol.rpc.add_to_server`."""
