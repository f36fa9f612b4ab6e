"""Hilum: the client room."""
