"""The model for other programs: one denoising evaluation as a file, and a page that samples in a browser."""
