"""Learn the loss function while training the model."""
