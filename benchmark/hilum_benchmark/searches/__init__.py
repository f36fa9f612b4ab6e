"""Both searches on one real volume, beside networks that nobody searched."""
