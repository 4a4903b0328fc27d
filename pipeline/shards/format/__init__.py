"""What a folder of shards holds, file by file: tars, their indexes, names, what was set aside, and the manifest."""
