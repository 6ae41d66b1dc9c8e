"""The parts of `segment`."""
