"""From an archive of images to shard sets: what ``dira-dist shard`` does."""

from dira_dist.data.ingest.options import ShardOptions, parse_split
from dira_dist.data.ingest.sharding import PartReport, ShardReport, Skipped, shard
from dira_dist.data.ingest.work import Progress

__all__ = ["PartReport", "Progress", "ShardOptions", "ShardReport", "Skipped", "parse_split", "shard"]
