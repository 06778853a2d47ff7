"""The control actor: it takes commands, answers questions and drives forget jobs."""
