"""DeepSpeed, and what a run leaves: ZeRO's config, AdamW, checkpoints, metrics."""
