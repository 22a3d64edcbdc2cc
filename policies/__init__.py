"""What is decided about a request: one file per decision, named in config.yaml and asked in that order."""
