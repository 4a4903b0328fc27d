"""What can go wrong with shards, as two kinds: the run cannot go on, or one sample cannot be used."""


class ShardError(ValueError):
    """The work cannot go on. The message is one line for the user: what, the value got, the value wanted."""


class SetAsideError(ValueError):
    """One source image cannot be used. The message is its reason in `rejected.tsv`; the work goes on."""
