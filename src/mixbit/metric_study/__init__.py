"""Which metric to trust on a model: random plans, what they cost, and how well each metric ranks them."""
