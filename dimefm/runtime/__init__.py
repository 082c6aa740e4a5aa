"""Helpers for processes: seeds, threads, devices, torchrun, progress, library versions, texts."""
