"""Where sound comes from: a file, a stream of raw samples, a microphone."""
