"""Captions: from tables of links to the filtered corpus."""
