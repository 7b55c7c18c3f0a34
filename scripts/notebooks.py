#!/usr/bin/env python3
"""Runs the notebooks of docs/notebooks, one after the other in one folder, and writes them as pages.

    notebooks.py FOLDER            runs them in FOLDER; an error in a cell is an error of this program
    notebooks.py FOLDER --write    writes docs/notebooks/NAME.md and its pictures, too

It needs the Python of `scripts/setup.sh --notebooks`, the program `maskdiff` on the PATH, and the package `maskdiff`.
"""
import base64
import pathlib
import re
import sys
import time

import nbclient
import nbformat

NOTEBOOKS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "notebooks"
# In the order of the index: the first one trains what the others read.
ORDER = ("first-model", "sampler-law", "compare-samplers", "your-network", "read-runs")
# Colours and cursor movements of a terminal, and of lines that overwrite each other the last.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n]*\r(?!\n)")


def page(name, book):
    """A notebook with what its cells gave as Markdown; its pictures are written beside it."""
    parts = [f"<!-- Written by scripts/notebooks.py from {name}.ipynb. -->"]
    pictures = 0
    for cell in book.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        text = ""
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                pictures += 1
                file = f"{name}-{pictures}.png"
                (NOTEBOOKS / file).write_bytes(base64.b64decode(data["image/png"]))
                parts += [f"```text\n{text.rstrip()}\n```"] if text.strip() else []
                parts.append(f"![A picture of the cell above]({file})")
                text = ""
            else:
                text += output.get("text", "") or data.get("text/plain", "")
        if text.strip():
            parts.append(f"```text\n{CONTROL.sub('', text).rstrip()}\n```")
    (NOTEBOOKS / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main():
    folder, write = pathlib.Path(sys.argv[1]), "--write" in sys.argv[2:]
    if write:
        for picture in NOTEBOOKS.glob("*.png"):
            picture.unlink()
    for name in ORDER:
        began = time.monotonic()
        book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
        try:
            client.execute()
        except nbclient.exceptions.CellExecutionError as error:
            sys.exit(f"{name}.ipynb: {error}")
        if write:
            page(name, book)
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
