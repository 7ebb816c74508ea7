"""Hands at work, by ear: clips, training of the head, cross-validation by recording, and the figures of its card."""
