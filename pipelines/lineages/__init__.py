"""What became of an image: where it lies, which trainings saw it in which steps, and how it is left out from now on."""
