"""A Hugging Face Space that shows a run or an export: visitors pick parts and compose; nothing else is open.

The Space holds a folder ``run/``, a finished run or what ``partcraft export`` has written, beside this file.
"""

from pathlib import Path

from partcraft_lit.cli import main

if __name__ == "__main__":
    here = Path(__file__).parent
    main(
        [
            "app",
            f"run={here / 'run'}",
            "app.host=0.0.0.0",
            "app.port=7860",
            "app.public=true",
            "app.open_browser=false",
            "app.kept_results=300",
            f"paths.logs={here / 'logs'}",
        ]
    )
