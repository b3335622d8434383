"""Transfer of parts to the other family: what is asked for, in words, and how it truly looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from partcraft_lit.core.randomness import numpy_generator
from partcraft_lit.evaluation.transfer import Guests, TransferRequest
from partcraft_lit.world.oracle import LookOracle, SpeciesOracle
from partcraft_lit.world.zoo.captions import describe_look, join
from partcraft_lit.world.zoo.chimeras import draw_chimera, other_family, replaced_parts
from partcraft_lit.world.zoo.draw import ASIDE_COLUMN
from partcraft_lit.world.zoo.looks import BIRD, NUM_PARTS, look_table
from partcraft_lit.world.zoo.scenes import pose_of

#: Number of a pose that decides whether something lies before the creature.
_OCCLUDER_COLUMN = 28
#: Hosts among which the asked one has to be found.
_HOSTS = 6
_COLOR = 1  # column of a look


class CreatureTransfers:
    """Hosts of the other family, of looks that the base model knows by words, and guest parts of a data set's species.

    Args:
        family: of the data set, "bird" or "beast".
        looks: (species, parts, 3) of the data set.
        part_names: its true parts.
        size: side of images in pixels.
        seed: decides hosts, guests and poses.
    """

    def __init__(self, family: str, looks: Tensor, part_names: Sequence[str], size: int, seed: int) -> None:
        self._family, self._looks, self._names = family, looks, tuple(part_names)
        self._size, self._seed = size, seed

    @property
    def num_species(self) -> int:
        return len(self._looks)

    def request(self, number: int, parts: int, names: Sequence[str]) -> TransferRequest:
        """The host in words, with slots for tokens, and the guests.

        Args:
            number: of the request.
            parts: how many guest parts, of as many species.
            names: true parts to draw from.
        """
        generator = self._generator("guests", number, parts)
        chosen = generator.permutation(len(names))[:parts].tolist()
        species = generator.permutation(self.num_species)[:parts].tolist()
        guests = {names[part]: int(one) for part, one in zip(chosen, species, strict=True)}
        other, hidden = other_family(self._family), replaced_parts(self._family, guests)
        host = self._host(number, 0)
        described = [
            describe_look(other, part, tuple(int(value) for value in host[part]), with_shape=True)
            for part, name in enumerate(other.part_names)
            if name not in hidden
        ]
        slots = [f"{{{name}}}" for name in guests]
        return TransferRequest(f"a photo of a {join(other.noun, [*described, *slots])}", guests)

    def truths(self, number: int, guests: Guests, poses: Sequence[int]) -> Tensor:
        """(P, 3, size, size) uint8 true drawings of a request in these poses."""
        return self._drawn(number, [0] * len(poses), [guests] * len(poses), poses)

    def other_species(self, number: int, guests: Guests, part: str, poses: Sequence[int]) -> Tensor:
        """(S, P, 3, size, size): ``part`` of every species in turn, all else as asked."""
        changed = [{**guests, part: species} for species in range(self.num_species) for _ in poses]
        images = self._drawn(number, [0] * len(changed), changed, [*poses] * self.num_species)
        return images.unflatten(0, (self.num_species, len(poses)))

    def other_hosts(self, number: int, guests: Guests, poses: Sequence[int]) -> Tensor:
        """(H, P, 3, size, size): the same guests on several hosts, the asked one first."""
        hosts = [host for host in range(_HOSTS) for _ in poses]
        images = self._drawn(number, hosts, [guests] * len(hosts), [*poses] * _HOSTS)
        return images.unflatten(0, (_HOSTS, len(poses)))

    def read(self, number: int, guests: Guests, images: Tensor) -> list[dict[str, float]]:
        """The oracle knows birds. Of birds' parts on a beast ``part@oracle``: the share that are of their species. Of
        beasts' parts on a bird ``host@oracle``: the share of the bird's own parts in the right colour.
        """
        if self._family == BIRD.noun:
            species = self._species_oracle.read(images).species  # (B, parts)
            right = torch.stack([species[:, self._names.index(name)] == one for name, one in guests.items()], dim=1)
            return [{"part@oracle": share} for share in right.double().mean(dim=1).tolist()]
        hidden = replaced_parts(self._family, guests)
        shown = [part for part, name in enumerate(BIRD.part_names) if name not in hidden]
        reading = self._look_oracle.read(images)
        colors = torch.from_numpy(self._host(number, 0))[shown, _COLOR]
        right = (reading.presence >= 0.5)[:, shown] & (reading.looks()[:, shown, _COLOR] == colors)
        return [{"host@oracle": share} for share in right.double().mean(dim=1).tolist()]

    @cached_property
    def _species_oracle(self) -> SpeciesOracle:
        return SpeciesOracle(looks=self._looks)

    @cached_property
    def _look_oracle(self) -> LookOracle:
        return LookOracle()

    def _drawn(
        self, number: int, hosts: Sequence[int], guests: Sequence[Mapping[str, int]], poses: Sequence[int]
    ) -> Tensor:
        looks = torch.stack([torch.from_numpy(self._host(number, host)) for host in hosts])
        own = {
            name: torch.stack([self._looks[one[name], self._names.index(name)] for one in guests]) for name in guests[0]
        }
        images: Tensor = draw_chimera(self._family, looks, own, self._poses(poses), self._size).images
        return images

    def _host(self, number: int, host: int) -> np.ndarray:
        """(parts, 3) looks of a host of a request."""
        table = look_table("pretraining")
        return table[self._generator("host", number, host).integers(len(table), size=NUM_PARTS)]

    def _poses(self, numbers: Sequence[int]) -> Tensor:
        """Poses in which the whole creature shows."""
        poses = torch.stack([pose_of(self._seed, "transfer", number) for number in numbers])
        poses[:, [ASIDE_COLUMN, _OCCLUDER_COLUMN]] = 1.0
        return poses

    def _generator(self, *keys: str | int) -> np.random.Generator:
        return numpy_generator(self._seed, "transfer", self._family, *keys)
