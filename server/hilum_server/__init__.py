"""Hilum: the server room."""
