"""Evaluation: from a predictions file to metrics, intervals and tests over speakers."""
