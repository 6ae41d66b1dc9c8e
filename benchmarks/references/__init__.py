"""Methods written out plainly, as their papers and official code read: what benchmarks and tests compare the package with."""
