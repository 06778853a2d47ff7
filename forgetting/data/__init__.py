"""Images: where they come from, how they are split, and how they become tensors.

`durable_file` writes for every folder of the package.
"""
