"""Run the notebook from top to bottom, as a reader would.

python -m colab.run [OUTPUT.ipynb]
"""

import sys
import time
from pathlib import Path

import nbclient
import nbformat

from diffussm_jax.parallel.libtpu import let_libtpu_compile

NOTEBOOK = Path(__file__).with_name("diffussm_tpu_demo.ipynb")


def main() -> None:
    """Run all cells; an error in one ends the program."""
    let_libtpu_compile()  # where there is no TPU, the notebook's process finds its libtpu silent
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    start = time.monotonic()
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}
    )
    client.execute()  # raises with the cell and its output where one fails
    if len(sys.argv) > 1:
        nbformat.write(notebook, sys.argv[1])
    sys.stdout.write(f"{NOTEBOOK.name} ran in {time.monotonic() - start:.0f} s\n")


if __name__ == "__main__":
    main()
