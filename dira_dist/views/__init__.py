"""Views on the device: crop, jitter, blur and distortion of whole batches, drawn for each sample alone; and, for
supervised training, frames and augmentation that take masks along."""

from dira_dist.views.augmentation import AugmentationConfig, augment
from dira_dist.views.labelled import LabelledViews, labelled_views
from dira_dist.views.rows import take_rows
from dira_dist.views.views import Views, ViewsConfig, check_viewable, make_views

__all__ = [
    "AugmentationConfig",
    "LabelledViews",
    "Views",
    "ViewsConfig",
    "augment",
    "check_viewable",
    "labelled_views",
    "make_views",
    "take_rows",
]
