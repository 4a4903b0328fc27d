"""How a scene becomes pixels: what is seen, how it is lit, how a camera takes it."""
