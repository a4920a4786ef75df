"""The style of every figure, its titles, and panels that several experiments share."""
