"""Ways to forget, behind the one protocol of `forgetting.method`."""
