"""Numbers in few bits: calibration, scales, biases, masks; from a float graph to a simulated one."""
