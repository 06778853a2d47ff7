"""A replica of the served model: live weights, lease, batches, decoding and the shadow."""
