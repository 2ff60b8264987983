"""A run on disk: its folder, its weights, and the decoder loaded back from them."""
