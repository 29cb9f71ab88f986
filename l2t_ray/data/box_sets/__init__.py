"""Sets of images with boxes, one file each, and how annotations are read from files."""
