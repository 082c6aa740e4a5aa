"""Engines that run an extraction: this process, or a cluster.

Each engine is one file with the function ``run(extraction, share, echo) -> list[Report]``.
"""
