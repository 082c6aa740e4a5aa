"""The ground floor for bytes: safe files, locks between processes, and folders or URLs as
stores.
"""
