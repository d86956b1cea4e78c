"""Fine-tuning: a classifier or a segmenter from few labels, on the machinery that pretraining has."""
