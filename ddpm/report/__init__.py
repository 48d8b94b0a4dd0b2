"""Pages of results: numbers, tables and pictures in; one HTML file out, which loads nothing from anywhere."""
