"""The parts of `export`."""
