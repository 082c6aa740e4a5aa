"""Weights from elsewhere: published checkpoints, and weights of larger models for a student."""
