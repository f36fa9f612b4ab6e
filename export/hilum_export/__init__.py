"""Hilum: the export room."""
