"""CPU kernels in C++ that the backends share, and what compiles them."""
