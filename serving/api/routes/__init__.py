"""The HTTP face of a replica, one module for each kind of caller."""
