"""Datasets and transforms. Names load with their first use, so that importing this package costs nothing."""

from importlib import import_module
from typing import Any

_HOMES = {
    "CocoDetection": "zoo.data.coco",
    "CocoInstances": "zoo.data.coco_instances",
    "CocoPanoptic": "zoo.data.coco_panoptic",
    "Digits": "zoo.data.digits",
    "ImageFolder": "zoo.data.image_folder",
    "ImageReadError": "zoo.data.loading",
    "MaskFolder": "zoo.data.mask_folder",
    "PhantomDataset": "zoo.data.phantom_dataset",
    "Shapes": "zoo.data.shapes",
    "ShapesDetection": "zoo.data.shapes_detection",
    "ShapesSegmentation": "zoo.data.shapes_segmentation",
    "VocDetection": "zoo.data.voc",
    "VolumeDataset": "zoo.data.volume_dataset",
    "YoloDetection": "zoo.data.yolo",
    "build_detection_transforms": "zoo.data.detection_transforms",
    "build_transforms": "zoo.data.transforms",
    "build_volume_transforms": "zoo.data.volume_transforms",
    "check_folder": "zoo.data.check",
    "find_volume_data": "zoo.data.volume_folder",
    "read_image": "zoo.data.loading",
    "read_volume": "zoo.data.volumes",
    "write_phantom": "zoo.data.phantom",
    "write_volume": "zoo.data.volumes",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zoo.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
