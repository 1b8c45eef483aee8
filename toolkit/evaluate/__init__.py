"""Did it help, did it forget? Measured on held-out rows and general texts: of the base, the tuned model, every export, and what
is served."""
