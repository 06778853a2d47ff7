"""Settings, their sources, and the home folder of an installation."""
