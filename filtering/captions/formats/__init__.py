"""The formats that links come in, one module each: where a file's columns are and how it is cut, and the rows of a part."""
