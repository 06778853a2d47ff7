"""One forget task from end to end: images and a stack in, an adapter and its report out."""
