"""Run folders on disk: read one, compare several."""
