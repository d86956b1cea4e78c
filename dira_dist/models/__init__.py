"""The networks: U-Net, heads and discriminator, gradient checkpointing, initial weights."""
