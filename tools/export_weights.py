"""Write a checkpoint as safetensors: python tools/export_weights.py checkpoint=<file> output=<file.safetensors>."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("export")
