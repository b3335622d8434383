"""One module per verb: ``check`` (imports nothing heavy), ``choose_folder`` and ``main``: wiring, nothing else."""
