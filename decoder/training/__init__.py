"""From captions to weights: the trainer, its objectives, validation and saved state."""
