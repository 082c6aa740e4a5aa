"""Weight inheritance: a student begins with a part of the weights of a larger model.

``manual`` takes the first of everything, as TinyCLIP does; ``importance`` takes what counts most on
images and sentences of the run. Both work on the state dict of one tower.
"""
