"""Shards on disk: the plan, atomic publication, resume, verification, the dataset card."""
