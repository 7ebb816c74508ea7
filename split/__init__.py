"""Split computing: the front layers run here, the back layers on a server that the user owns and has paired."""
