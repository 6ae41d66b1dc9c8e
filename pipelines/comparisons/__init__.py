"""Finished runs side by side: scores with what of their differences is larger than noise, settings, curves, classes, images."""
