"""torch.hub.load("<user>/<this repository>", "load_model", "user/repo") is trans4pass.load_model("user/repo")."""

dependencies = ["torch", "torchvision", "timm", "safetensors", "pydantic", "annotated_types", "rich", "yaml", "PIL"]

from trans4pass import create_model, load_model  # noqa: E402, F401 - entry points
