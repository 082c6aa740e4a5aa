"""ImageNet and its five variants: two conventions of class names, and robustness."""
