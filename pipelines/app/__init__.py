"""What all verbs share: the command line, the settings, the folder of a run."""
