"""The performance suite: ours and the peer or the limit, interleaved in one process, printed as
ratios.
"""
