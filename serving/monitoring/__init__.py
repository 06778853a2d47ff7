"""What live traffic shows: metrics, evidence, the monitor actor and the watch actor."""
