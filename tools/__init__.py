"""The command line, model download and evaluation."""
