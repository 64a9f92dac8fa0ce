"""Merging: from the experts' task vectors to one encoder."""
