"""Hilum: the search room."""
