"""Reports: the pages and pictures that people look at."""
