"""Learning from the float network, block by block or as a whole."""

from mixbit.training.learnable import learnable as learnable, settled as settled
from mixbit.training.loop import Training as Training
