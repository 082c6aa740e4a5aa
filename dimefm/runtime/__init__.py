"""The ground floor for processes: seeds, threads, devices, torchrun, progress bars and library
versions.
"""
