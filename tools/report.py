"""The page of a finished run, or of several: python tools/report.py run=runs/a, or runs=[runs/a,runs/b]."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("report")
