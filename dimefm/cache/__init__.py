"""The feature cache: embeddings of one encoder for the rows of a source, in sealed shards.

This package imports numpy and, inside the format files only, pyarrow and h5py. It never imports
torch. The bytes are specified in ``docs/cache-format.md``.
"""

from dimefm.cache.manifest import EncoderCard, Manifest
from dimefm.cache.reader import FeatureCache
from dimefm.cache.shard_info import ShardInfo
from dimefm.cache.writer import CacheWriter

__all__ = ["CacheWriter", "EncoderCard", "FeatureCache", "Manifest", "ShardInfo"]
