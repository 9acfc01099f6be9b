"""Training: where data and models meet."""
