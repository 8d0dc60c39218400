"""Names, specs and argument checks of the registry."""

from typing import Any

import pytest
import torch

from zoo.registry import (
    MIXERS,
    MODELS,
    Registry,
    UnknownNameError,
    accepted_arguments,
    build,
    check_arguments,
    resolve,
    variant,
)


class Base:
    def __init__(self, width: int = 1, **other: Any):
        self.width, self.other = width, other


class Closed:
    def __init__(self, *, depth: int = 2):
        self.depth = depth


class Open(Base):
    def __init__(self, height: int = 3, **kwargs: Any):
        super().__init__(**kwargs)
        self.height = height


class Shut(Closed):
    def __init__(self, name: str = "x", **kwargs: Any):
        super().__init__(**kwargs)
        self.name = name


@pytest.fixture
def registry() -> Registry:
    registry = Registry("thing", ())
    registry.register(Shut)
    registry.register(name="other", kind="b")(Open)
    return registry


def test_a_name_taken_twice_is_an_error(registry):
    registry.register(Shut)  # the same again is no conflict: a module may be imported twice
    with pytest.raises(ValueError, match="'Shut' is registered twice"):
        registry.register(Open, name="Shut")


def test_unknown_names_get_the_nearest(registry):
    with pytest.raises(UnknownNameError, match="unknown thing 'Shutt'; did you mean Shut"):
        registry.get("Shutt")
    with pytest.raises(LookupError, match="did you mean davit_tiny"):
        MODELS.get("davit_tin")
    assert "other" in registry
    assert "another" not in registry


def test_names_by_pattern_and_meta(registry):
    assert registry.names() == ["Shut", "other"]
    assert registry.names("S*") == ["Shut"]
    assert registry.names(kind="b") == ["other"]
    assert "davit_tiny" in MODELS.names("davit_*", family="davit")


def test_kwargs_are_followed_to_the_base_class():
    assert accepted_arguments(Shut) == ({"name", "depth"}, False)
    assert accepted_arguments(Open) == ({"height", "width"}, True)
    check_arguments(Open, ["anything"])
    check_arguments(Shut, ["name", "depth"])
    with pytest.raises(TypeError, match="here: Shut has no argument 'dept'; did you mean depth"):
        check_arguments(Shut, ["dept"], where="here")


def test_a_variant_is_a_builder_whose_arguments_can_be_read():
    @variant(Shut)
    def small() -> dict[str, Any]:
        """A small one."""
        return dict(name="small", depth=5)

    built = small(depth=7)
    assert (built.name, built.depth) == ("small", 7)
    assert small().depth == 5
    assert small.builds is Shut
    assert small.preset == {"name": "small", "depth": 5}
    assert (small.__name__, small.__doc__, small.__module__) == ("small", "A small one.", __name__)
    assert accepted_arguments(small) == ({"name", "depth"}, False)
    with pytest.raises(TypeError, match="'nam'; did you mean name"):
        check_arguments(small, ["nam"])


@pytest.mark.parametrize("spec", ["Shut", Shut, {"type": "Shut"}, {"type": Shut}])
def test_what_a_spec_may_be(registry, spec):
    built = build(spec, registry, depth=9)
    assert type(built) is Shut
    assert built.depth == 9
    assert build(built, registry) is built
    if isinstance(spec, dict):
        assert build({**spec, "depth": 4}, registry, depth=9).depth == 4  # the spec wins over the default


def test_a_dotted_path_is_a_type():
    assert resolve("torch.nn.Linear", MIXERS) is torch.nn.Linear
    assert build({"type": "torch.nn.Linear", "in_features": 2, "out_features": 3}, MODELS).weight.shape == (3, 2)


def test_bad_specs(registry):
    with pytest.raises(TypeError, match="needs a 'type'"):
        build({"depth": 3}, registry)
    with pytest.raises(TypeError, match="thing: Shut has no argument 'deepth'"):
        build({"type": "Shut", "deepth": 3}, registry)
    with pytest.raises(LookupError, match="unknown thing"):
        build("nothing", registry)
