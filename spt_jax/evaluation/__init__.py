"""What a model makes of the rows of tasks, as scores."""
