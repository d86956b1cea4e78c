"""Views on the device: crop, jitter, blur and distortion of whole batches, drawn for each sample alone."""

from dira_dist.views.views import Views, ViewsConfig, check_viewable, make_views

__all__ = ["Views", "ViewsConfig", "check_viewable", "make_views"]
