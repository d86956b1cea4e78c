"""What the models use of PyTorch that is not public, with its reason."""

from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BatchNorm"]

# The one class that batch norms of any number of dimensions have in common, SyncBatchNorm included.
BatchNorm = _BatchNorm
