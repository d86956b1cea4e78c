"""``python -m dira_dist``: the same as ``dira-dist``, and what makes a job file executable."""

from dira_dist.cli import main

main()
