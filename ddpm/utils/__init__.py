"""What every room uses: files, images, random streams, errors, the runtime."""
