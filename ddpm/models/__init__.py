"""The networks behind one interface, how they are built, and the file that a trained one is kept in."""
