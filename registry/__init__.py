"""Registry: the append-only, hash-chained, signed ledger and its content-addressed blobs."""
