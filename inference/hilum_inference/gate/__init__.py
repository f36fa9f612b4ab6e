"""Hostile input, before anything else sees it: checked while its bytes arrive, decoded in a caged child."""
