"""Image sets in, numbers out. Nothing here knows how the images were made."""
