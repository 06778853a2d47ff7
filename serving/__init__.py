"""The Ray Serve application: serves the frozen backbone, runs forget commands, swaps releases."""
