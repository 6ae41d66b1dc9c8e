"""Grids of settings times seeds: their cells, the work that they share, their tables."""
