"""Where objects are kept under names: a directory or a bucket, with one contract."""
