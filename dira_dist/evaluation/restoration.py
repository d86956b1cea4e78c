"""How well distorted images are restored: PSNR and SSIM against the undistorted crop.

torchmetrics takes more than a second to import, and a job file is checked without it.
"""

import importlib
from typing import Any

from torch import Tensor


def psnr(restored: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, for images in [0, 1]: ``10 log10(1 / MSE)``.

    Args:
        restored: ``(B, 1, *S)``.
        target: ``(B, 1, *S)``.

    Returns:
        ``(B,)``; infinite where both are equal.
    """
    ratios: Tensor = _torchmetrics().peak_signal_noise_ratio(
        restored.float(), target.float(), data_range=1.0, reduction="none", dim=tuple(range(1, target.ndim))
    )
    return ratios


def ssim(restored: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image in [0, 1] (Wang, Bovik, Sheikh, Simoncelli, TIP 2004), 1 for equal ones.

    Args:
        restored: ``(B, 1, *S)``, each side 11 px or more (the window's).
        target: ``(B, 1, *S)``.

    Returns:
        ``(B,)``.
    """
    similarities: Tensor = _torchmetrics().structural_similarity_index_measure(
        restored.float(), target.float(), data_range=1.0, reduction="none"
    )
    return similarities


def _torchmetrics() -> Any:
    return importlib.import_module("torchmetrics.functional.image")
