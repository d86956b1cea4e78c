"""What networks are worth: features, probes, rank of the representation, restoration."""
