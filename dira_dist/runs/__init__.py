"""A run's folder: whose it is, who drives it, and what its checkpoints were evaluated to be."""
