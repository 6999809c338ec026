"""A local page to drop a panorama on: python tools/serve.py checkpoint=<file> [setting=value ...]."""

from trans4pass.cli import run

if __name__ == "__main__":
    run("serve")
