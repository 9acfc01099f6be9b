"""Corpora on disk -> manifest table: one file and one function per corpus."""
