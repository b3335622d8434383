"""One module per verb: ``check`` (quick, imports nothing heavy), ``choose_folder`` and ``main``. Wiring, nothing else."""
