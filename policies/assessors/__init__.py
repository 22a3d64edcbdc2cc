"""Opinions for the policy `safety`: one file each, named in config.yaml; none is imported unless it is named there."""
