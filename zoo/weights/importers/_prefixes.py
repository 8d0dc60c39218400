"""Names of whole parts of a state dict that map both ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


class PrefixMap:
    """A one-to-one renaming of the parts that keys begin with; what follows a part keeps its name.

    Args:
        pairs: (the authors' part, ours), whole names between dots; "" stands for all that no other part covers. The
            longest that fits is taken.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        self.pairs = list(pairs)
        self._there = dict(self.pairs)
        self._back = {own: official for official, own in self.pairs}
        if not len(self._there) == len(self._back) == len(self.pairs):
            raise ValueError("a part is named twice")

    @staticmethod
    def _rename(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        unknown = []
        for key, value in state.items():
            words = key.split(".")
            for n in range(len(words), -1, -1):
                part = ".".join(words[:n])
                if part in names:
                    new = ".".join(filter(None, [names[part], *words[n:]]))
                    if new in found:
                        raise KeyError(f"two keys of the state dict become {new!r}; one of them is {key!r}")
                    found[new] = value
                    break
            else:
                unknown.append(key)
        if unknown:
            raise KeyError(f"{len(unknown)} unexpected keys in the state dict: {', '.join(unknown[:8])}")
        return found

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official names to ours.

        Raises:
            KeyError: keys that no part covers; the message lists the first ones.
        """
        return self._rename(state, self._there)

    def revert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our names to official ones; raises KeyError like :meth:`convert`."""
        return self._rename(state, self._back)
