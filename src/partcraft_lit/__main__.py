"""``python -m partcraft_lit``: the same as ``partcraft``."""

from partcraft_lit.cli import main

if __name__ == "__main__":
    main()
