"""The main job in one command, on data that this package makes itself: no network, no GPU, no
stored teacher.
"""
