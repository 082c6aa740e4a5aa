"""Packed images: photos that were downscaled once, in shards that keep their identity."""
