"""Sets of images with masks, one file each, and how masks are read from files."""
