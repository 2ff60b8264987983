"""The networks: decoders, cells, attention, and recurrence that sums gradients over time."""
