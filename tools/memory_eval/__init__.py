"""What retention policies keep, and what it is worth: generated tasks, runs on a model, statistics, report."""
