"""The Open Inference Protocol, version 2: its tensors, requests and answers, as REST and as gRPC.

https://github.com/kserve/open-inference-protocol. Nothing here asks a model: `answering` of the two
transports hands images to the one path that all interfaces share, `Recognizer.score`.
"""
