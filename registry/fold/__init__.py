"""What the records add up to, and which record can't follow. Pure: no store, no clock."""
