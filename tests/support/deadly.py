"""What reads files, and whose process the kernel ends at certain ones, as it does when memory runs out."""

import os
import signal
from collections.abc import Iterator

from dira_dist.data.ingest.convert import Converter, ItemFindings, Task
from dira_dist.data.ingest.intensity import IntensityRule, Mapping
from dira_dist.data.ingest.scales import Series, settle
from dira_dist.data.shards import Sample


class DeadlyConverter(Converter):
    """Ends its process at files called ``deadly``."""

    def samples(self, task: Task, files: list[bytes], findings: ItemFindings) -> Iterator[Sample]:
        if "deadly" in task.item.files[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().samples(task, files, findings)


def deadly_settle(source: str, series: Series, rule: IntensityRule) -> tuple[Mapping, str]:
    """Ends its process at series of files called ``deadly``."""
    if "deadly" in series.files[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return settle(source, series, rule)
