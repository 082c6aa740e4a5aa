"""Encoders (teacher and student are the same type) and student architectures."""
