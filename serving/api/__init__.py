"""The HTTP and gRPC interfaces: inference in every replica, and commands in the operator API."""
