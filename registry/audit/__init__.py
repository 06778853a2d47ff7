"""What the log says, for people: one erasure, one release, one line for each record."""
