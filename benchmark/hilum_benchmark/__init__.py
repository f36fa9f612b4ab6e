"""Hilum: the benchmark room."""
