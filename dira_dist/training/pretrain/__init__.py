"""The first task: DiRA's pretraining of a U-Net by a discriminative method, restoration and an adversary."""

from dira_dist.training.pretrain.recipe import PretrainRecipe as PretrainRecipe
