"""Run an encoder quickly: batch sizes, precision, compilation and work in flight."""
