"""The ledger, and what its readers keep beside it: checkpoints and the high-water mark."""
