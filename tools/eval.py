"""Score a checkpoint: python tools/eval.py checkpoint=<file> data=<data set> [setting=value ...]."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("eval")
