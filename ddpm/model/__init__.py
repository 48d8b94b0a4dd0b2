"""The network, the moving average of its weights, and the file it is kept in."""
