"""Check a data set on disk: python tools/check_data.py data=<data set> labels=<label space> [setting=value ...]."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("check-data")
