"""DiRA self-supervised pretraining of medical images at cluster scale.

Everything the command line does is a call from here::

    import dira_dist

    dira_dist.shard("images/", "s3://bucket/set")
    loaded = dira_dist.load_job("jobs/pretrain.yaml", ["data.train=s3://bucket/set"])
    print(*dira_dist.check(loaded).lines(), sep="\\n")
    outcome = dira_dist.run(loaded)
    dira_dist.pull("models:/dira@best", "weights/", format="torchvision")

Names are imported when they are first used, so that reading a job file needs neither Ray nor MLflow. The stub beside
this file lists them.
"""

import lazy_loader

from dira_dist.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
