"""The plan: one file that says everything that runs, read by Python and C alike (docs/nvidia-plan.md)."""
