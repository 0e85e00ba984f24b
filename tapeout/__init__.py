"""tapeout: trained models in, verified artifacts for the hardware that runs them out."""
