"""Score-based generative models coupled to OpenMM simulations by exact Metropolis moves."""

__version__ = "0.1.0"
