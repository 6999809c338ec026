"""Segment one image: python examples/predict.py <run, file or name on the hub> <image>; writes overlay.png."""

import sys

from trans4pass import load_model

model = load_model(sys.argv[1])
result = model.predict(sys.argv[2])
result.overlay().save("overlay.png")
for index, name in enumerate(result.classes):
    print(f"{(result.labels == index).mean():6.1%} {name}")
