"""Import features that other tools wrote into a cache."""
