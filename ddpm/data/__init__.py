"""MNIST from its original bytes to uint8 arrays."""
