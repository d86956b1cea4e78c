"""From an archive of images to shard sets: what ``dira-dist shard`` and ``dira-dist remove`` do."""

from dira_dist.data.ingest.options import ShardOptions, parse_split
from dira_dist.data.ingest.removal import RemovalReport, read_list, remove
from dira_dist.data.ingest.sharding import PartReport, ShardReport, Skipped, shard
from dira_dist.data.ingest.work import Progress

__all__ = [
    "PartReport",
    "Progress",
    "RemovalReport",
    "ShardOptions",
    "ShardReport",
    "Skipped",
    "parse_split",
    "read_list",
    "remove",
    "shard",
]
