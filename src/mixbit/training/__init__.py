"""Learning from the float network, block by block or as a whole."""

from mixbit.training.loop import Training as Training, learnable as learnable, settled as settled
