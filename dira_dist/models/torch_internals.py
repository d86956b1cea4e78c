"""What the models use of PyTorch that is not public, with its reason."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BatchNorm", "convolution_backward"]

# The one class that batch norms of any number of dimensions have in common, SyncBatchNorm included.
BatchNorm = _BatchNorm

# What autograd calls, for any convolution: which of its gradients are computed is the caller's choice.
convolution_backward = torch.ops.aten.convolution_backward
