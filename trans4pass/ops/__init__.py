from trans4pass.ops.deform_conv import BACKENDS, check_backend, deform_conv2d

__all__ = ["BACKENDS", "check_backend", "deform_conv2d"]
