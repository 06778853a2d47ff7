"""One replica: the slot of live weights, its lease, batches, decoding and the shadow."""
