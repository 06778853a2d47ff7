"""What one forget task leaves behind: an adapter, its files, and a stack of them in a model."""
