"""Named models: heads for bags of patch features (ACMIL, arXiv 2311.07125; AEM, arXiv 2406.15303).

Names say which features a head is made for; the input size is a bag of 1000 patches.
"""

from __future__ import annotations

from typing import Any

from zoo.medical.acmil import GatedACMIL, QueryACMIL
from zoo.medical.aem import ABMIL, DSMIL, QueryMIL
from zoo.registry import register_model, variant


@register_model(task="medical", kind="bags", family="acmil", input_size=(1000, 512))
@variant(GatedACMIL)
def acmil_ga_resnet18() -> dict[str, Any]:
    """Gated attention over features of a ResNet-18."""
    return dict(in_dim=512, dim=256)


@register_model(task="medical", kind="bags", family="acmil", input_size=(1000, 384))
@variant(GatedACMIL)
def acmil_ga_vit_small() -> dict[str, Any]:
    """Gated attention over features of a self-supervised ViT-S."""
    return dict(in_dim=384, dim=128)


@register_model(task="medical", kind="bags", family="acmil", input_size=(1000, 768))
@variant(GatedACMIL)
def acmil_ga_pathgen_clip() -> dict[str, Any]:
    """Gated attention over features of PathGen-CLIP-L."""
    return dict(in_dim=768, dim=384)


@register_model(task="medical", kind="bags", family="acmil", input_size=(1000, 1024))
@variant(GatedACMIL)
def acmil_ga_uni() -> dict[str, Any]:
    """Gated attention over features of UNI."""
    return dict(in_dim=1024, dim=512)


@register_model(task="medical", kind="bags", family="acmil", input_size=(1000, 1536))
@variant(GatedACMIL)
def acmil_ga_gigapath() -> dict[str, Any]:
    """Gated attention over features of GigaPath."""
    return dict(in_dim=1536, dim=768)


@register_model(task="medical", kind="bags", family="acmil", input_size=(1000, 512))
@variant(QueryACMIL)
def acmil_mha_resnet18() -> dict[str, Any]:
    """Multi-head attention of learned queries over features of a ResNet-18."""
    return dict(in_dim=512, dim=256)


@register_model(task="medical", kind="bags", family="acmil", input_size=(100, 32))
@variant(GatedACMIL)
def acmil_ga_nano() -> dict[str, Any]:
    """For generated bags."""
    return dict(in_dim=32, dim=32, hidden=16, branches=3, masked_patches=5)


@register_model(task="medical", kind="bags", family="aem", input_size=(1000, 512))
@variant(ABMIL)
def abmil_aem() -> dict[str, Any]:
    """Gated attention, of the authors' inner width."""
    return dict(in_dim=512, dim=128)


@register_model(task="medical", kind="bags", family="aem", input_size=(1000, 512))
@variant(QueryMIL)
def mha_aem() -> dict[str, Any]:
    """Multi-head attention of one learned query."""
    return dict(in_dim=512, dim=256)


@register_model(task="medical", kind="bags", family="aem", input_size=(1000, 512))
@variant(DSMIL)
def dsmil_aem() -> dict[str, Any]:
    """Two streams, linear queries."""
    return dict(in_dim=512)


@register_model(task="medical", kind="bags", family="aem", input_size=(100, 32))
@variant(ABMIL)
def abmil_aem_nano() -> dict[str, Any]:
    """For generated bags."""
    return dict(in_dim=32, dim=32, hidden=16)
