"""The network of FID: layout, shapes, TensorFlow's resizing, and the file's hash. No weights are needed."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.metrics.networks.inception import (
    InceptionFeatures,
    InceptionV3,
    load_inception,
    prepare,
    resize_tensorflow,
)


def meta_network() -> InceptionV3:
    with torch.device("meta"):
        return InceptionV3().eval()


def test_layout_is_that_of_the_converted_weights():
    network = meta_network()
    # 23,834,568 parameters is the published size of Inception v3 with 1000 classes and without its auxiliary head.
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_834_568 + 8 * 2049
    state = network.state_dict()
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)
    assert state["Mixed_6e.branch7x7dbl_2.conv.weight"].shape == (192, 192, 7, 1)
    assert state["Mixed_7c.branch3x3dbl_3b.bn.running_var"].shape == (384,)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 94
    assert {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


def test_shapes_on_the_way():
    network = meta_network()
    shapes = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _m, _i, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
    assert network(torch.zeros(2, 3, 299, 299, device="meta")).shape == (2, 2048)
    assert shapes["Mixed_5b"] == (256, 35, 35)
    assert shapes["Mixed_5d"] == (288, 35, 35)
    assert shapes["Mixed_6e"] == (768, 17, 17)
    assert shapes["Mixed_7a"] == (1280, 8, 8)


def test_resizing_as_tensorflow_one_by_hand():
    row = torch.tensor([[0.0, 10.0]])
    # Places 0, 0.5, 1, 1.5 of the input; beyond the last pixel it is repeated.
    assert resize_tensorflow(row.expand(2, 2), 4)[0].tolist() == [0, 5, 10, 10]
    ramp = torch.arange(8.0).expand(8, 8)
    assert resize_tensorflow(ramp, 4)[0].tolist() == [0, 2, 4, 6]  # pixels are passed over, not averaged
    assert_close(resize_tensorflow(ramp.T, 3), resize_tensorflow(ramp, 3).T)
    assert resize_tensorflow(ramp, 8) is ramp


def test_preparation_maps_bytes_to_one():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 10, 7)
    found = prepare(images)
    assert found.shape == (3, 3, 299, 299)
    assert found[:, 0, 0, 0].tolist() == [-1, 0, 127 / 128]


def test_features_pool_in_batches():
    class Means(nn.Module):
        def forward(self, pixels):
            assert len(pixels) <= 2
            return pixels.mean(dim=(1, 2, 3))[:, None].expand(-1, 2048)

    features = InceptionFeatures(Means(), batch_size=2)  # type: ignore[arg-type]
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 8, 8)
    assert_close(features(images)[:, 0], (torch.arange(5) - 128) / 128)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the converted format: no counters of batches, random weights."""
    torch.manual_seed(0)
    state = {name: value for name, value in InceptionV3().state_dict().items() if "num_batches" not in name}
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest(), state


def test_weights_are_loaded_from_a_file_or_an_address(weights, tmp_path):
    path, digest, state = weights
    network = load_inception(path, sha256=digest[:10])
    assert torch.equal(network.fc.weight, state["fc.weight"])
    fetched = load_inception(path.as_uri(), sha256=digest, cache=tmp_path)
    assert torch.equal(fetched.Mixed_7c.branch_pool.bn.bias, state["Mixed_7c.branch_pool.bn.bias"])
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


def test_mistakes_are_named(weights, tmp_path):
    path, digest, _ = weights
    with pytest.raises(UserError, match=r"No Inception weights at .*nowhere.*pt_inception-2015-12-05-6726825d\.pth"):
        load_inception(tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match=f"SHA-256 begins with {digest[:8]}, wanted 6726825d"):
        load_inception(path)
    with pytest.raises(UserError, match="at least 8 digits"):
        load_inception(path, sha256="")
    with pytest.raises(UserError, match="give cache"):
        load_inception(path.as_uri(), sha256=digest)
    with pytest.raises(UserError, match="could not be fetched"):
        load_inception((tmp_path / "nowhere.pth").as_uri(), sha256=digest, cache=tmp_path)
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(3)}, other)
    with pytest.raises(UserError, match="holds no Inception v3 of FID"):
        load_inception(other, sha256=hashlib.sha256(other.read_bytes()).hexdigest())
    other.write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no Inception v3 of FID"):
        load_inception(other, sha256=hashlib.sha256(b"nothing").hexdigest())
