from trans4pass.ops.deform_conv import BACKENDS, deform_conv2d

__all__ = ["BACKENDS", "deform_conv2d"]
