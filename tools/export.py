"""Write a model in another format: python tools/export.py format=<format> checkpoint=<run or file> output=<file>."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("export")
