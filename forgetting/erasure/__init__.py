"""The closed form: erase classes from the feature that the head reads, without training."""
