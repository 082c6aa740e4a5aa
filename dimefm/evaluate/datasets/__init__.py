"""Evaluation datasets on disk: their layouts, labels and class names."""
