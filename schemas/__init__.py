"""What travels, what is configured and what is shown: pydantic models and their bytes, and nothing else."""
