"""Corpora on disk -> manifest: one file each, every one a function from a folder to a table."""
