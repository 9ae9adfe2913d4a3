"""What datasets and caches are both made by: shards through processes and ranks, into a folder that can be resumed."""
