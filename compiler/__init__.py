"""Model files in, package out."""
