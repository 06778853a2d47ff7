"""`lethe bench forgetting`: every method, the same tasks, the same figures, honestly compared."""
