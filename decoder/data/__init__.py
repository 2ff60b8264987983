"""What a decoder reads: batches of captions and features, from the store or from new pictures."""
