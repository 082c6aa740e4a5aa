"""Stage one: run the teacher once over images and sentences, and write its embeddings to a
cache.
"""
