"""A shard in memory, for tests of what concerns keys and numbers of rows alone."""

from dimefm.data.rows import Row, Shard


class Listed(Shard):
    """A shard whose keys are given; the sentence of a row is its number."""

    def __init__(self, name, keys):
        super().__init__(f"/raw/{name}", name)
        self._keys = keys

    def __len__(self):
        return len(self._keys)

    def __getitem__(self, index):
        return Row(self._keys[index], texts=(str(range(len(self))[index]),))

    def keys(self):
        return list(self._keys)

    def digest(self):
        return f"digest of {self._keys}"
