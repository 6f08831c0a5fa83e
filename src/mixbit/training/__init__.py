"""Learning from the float network, block by block or as a whole."""
