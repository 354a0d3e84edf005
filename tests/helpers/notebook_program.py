"""Runs the code cells of a notebook where there is no Jupyter: `python notebook_program.py NOTEBOOK`.

Prints what a cell's last expression evaluates to, and makes the form of it that Jupyter would show.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

from documents import read_cells


def show(value: Any) -> None:
    """Print a value: the size of its picture if it has one, else its text; a table must also make its HTML."""
    if hasattr(value, "_repr_html_"):
        value._repr_html_()
    is_picture = hasattr(value, "_repr_png_")
    print(f"a picture of {len(value._repr_png_())} bytes" if is_picture else value)  # noqa: T201 (the program's answer)


def main(notebook: Path) -> None:
    """Run the cells in their order, in one namespace."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(read_cells(notebook)):
        tree = ast.parse(cell)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
            if value is not None:
                show(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
