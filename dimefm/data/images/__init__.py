"""Images: decode, resize, crop and color them."""
