"""Several runs in one table: python tools/compare.py runs=[runs/a,runs/b]."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("compare")
