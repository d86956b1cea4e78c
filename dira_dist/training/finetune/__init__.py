"""The second task: a classifier or a segmenter from few labels, on the machinery that pretraining has."""

from dira_dist.training.finetune.recipe import FinetuneRecipe as FinetuneRecipe
