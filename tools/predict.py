"""Predict images: python tools/predict.py checkpoint=<file> input=<image or folder> [setting=value ...]."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("predict")
