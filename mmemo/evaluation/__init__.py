"""Evidence: cross-validation and what is computed from its predictions."""
