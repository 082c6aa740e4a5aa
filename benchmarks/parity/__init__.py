r"""Our figures beside those of clip-benchmark, on the same weights and the same files.

::

    python -m venv peer
    peer/bin/pip install "numpy<2.3" torch torchvision open_clip_torch clip-benchmark
    python -m benchmarks.parity --model tests/data/teacher --root DATA --out OUT \\
                                --peer peer/bin/python

clip-benchmark 1.6.2 does not run with numpy 2.4, so it has an environment of its own.
"""
