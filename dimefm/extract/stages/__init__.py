"""The stages of extraction: images, texts and tokens."""
