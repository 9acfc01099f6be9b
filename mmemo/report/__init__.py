"""Predictions -> pages: reports, charts, model cards."""
