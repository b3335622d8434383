"""Commands as processes of their own: in a pool on this machine or as jobs of SLURM, with a ledger."""
