"""Readers of the data set formats: each returns the records that its files hold."""
