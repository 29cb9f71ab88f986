"""A loss that is learned inside somebody else's training loop: their model, their optimizer, their steps."""
