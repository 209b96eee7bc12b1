"""Several trainings as one piece of work."""
