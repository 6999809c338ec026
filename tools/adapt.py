"""Adapt a checkpoint to images without labels: python tools/adapt.py checkpoint=<file> input=<folder> output=<file>."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("adapt")
