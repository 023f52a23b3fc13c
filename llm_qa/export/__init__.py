"""A run's model as a folder that other programs read: LoRA merged into 16-bit weights, written shard by shard."""
