"""Predict images: python tools/predict.py checkpoint=<file> input=<image or folder> [setting=value ...]."""

import sys

import hydra
from omegaconf import DictConfig

from trans4pass.engine.apply import predict_images
from trans4pass.engine.command import run_command


@hydra.main(version_base="1.3", config_path="../configs", config_name="predict")
def main(config: DictConfig) -> None:
    status = run_command(predict_images, config)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
