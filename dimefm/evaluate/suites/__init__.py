"""Suites of datasets that users have on disk: clip-benchmark's ``wds_*`` folders and DataComp's
tasks.
"""
