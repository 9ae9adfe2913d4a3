"""Measured on this machine: the parser beside stock benepar."""
