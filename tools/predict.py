"""Predict images: python tools/predict.py checkpoint=<file> input=<image or folder> [setting=value ...]."""

from omegaconf import DictConfig

from trans4pass.engine.apply import predict_images
from trans4pass.engine.command import run_command, tool


@tool("predict")
def main(config: DictConfig) -> int:
    return run_command(predict_images, config)


if __name__ == "__main__":
    main()
