"""The model that learns: its first weights, its states with gradients, losses on its logits, its export."""
