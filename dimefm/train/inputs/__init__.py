"""What a training step reads: images, sentences and cached teacher features, in the order of the
seed.
"""
