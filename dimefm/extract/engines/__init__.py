"""Engines that run an extraction: this process, or a cluster. One file each, with a function
``run``.
"""
