"""What is kept of a subject outside the log: its class and its images."""
