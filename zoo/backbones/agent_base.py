"""The former home of :func:`init_linear`."""

from zoo.backbones.hybrid_base import init_linear

__all__ = ["init_linear"]
