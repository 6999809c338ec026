"""Train, adapt and evaluate: python tools/train.py experiment=<name> [setting=value ...]."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("train")
