"""Captions for people: of pictures, in listings, sidecars, HTML pages and the browser."""
