"""The HTTP and gRPC faces: one that every replica shows, and one for operators."""
