"""How well the camera is woken: composed streams with known events, the real ear and trigger, baselines, report."""
