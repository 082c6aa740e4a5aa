"""A student against its teacher on the same images, and test images among the training data."""
