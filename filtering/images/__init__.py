"""Images: from the corpus' links to shards."""
