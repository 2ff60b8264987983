"""Readers of data set formats: each returns the records of a data set and its image root."""
