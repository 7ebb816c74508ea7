"""The parts of bench_peers: environments, shapes of random weights, the timing program and one adapter per runtime."""
