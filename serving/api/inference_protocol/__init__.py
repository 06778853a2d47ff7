"""The Open Inference Protocol, version 2: its tensors, requests and answers, as REST and as gRPC.

https://github.com/kserve/open-inference-protocol. Runs in the replicas. `asking.infer` hands the
images of both transports to `Recognizer.score`, the path of all interfaces.
"""
