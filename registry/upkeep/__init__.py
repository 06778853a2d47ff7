"""The care of a whole registry: verify it, take away leftovers, export and import it."""
