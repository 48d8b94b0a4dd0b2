"""From a data set's original bytes to uint8 arrays: sources, the split, images from anywhere."""
