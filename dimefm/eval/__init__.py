"""Names that programs written for an earlier layout import; they are in ``dimefm.evaluate``."""
