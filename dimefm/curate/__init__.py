"""Curation: choose what to learn from, by looking at the cached features."""
