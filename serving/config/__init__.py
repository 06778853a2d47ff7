"""Settings, where they come from, and the folder in which an installation keeps its files."""
