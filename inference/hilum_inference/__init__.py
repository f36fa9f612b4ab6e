"""Hilum: the inference room."""
