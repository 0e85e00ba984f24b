"""Scripts that run beside a framework, in an interpreter of their own: they import nothing of tapeout."""
