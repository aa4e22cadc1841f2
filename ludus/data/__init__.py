"""Between token ids and the loop: batches, token shards on disk, packing, and sources that can be resumed."""
