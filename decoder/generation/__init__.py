"""Captions word by word: beam search, sampling, constraints, ensembles."""
