"""From a bucket or folder to batches: stores, shard sets, the order of samples, and the stream of them."""
