"""What users of other tools expect beside the files of an export."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from partcraft_lit.backbones.pipelines import pipeline_seed
from partcraft_lit.commands.export.hub import push
from partcraft_lit.commands.export.workflow import canvas_seed, matching_steps
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import read_image

QUICK = ("parts=[part1,part2:0]", "sample.steps=3", "thumbnails=2", "sample.negative_prompt=a <part1:2>, blurry")


@pytest.fixture(scope="session")
def exported(tiny_run, workshop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "birds"
    ended = workshop("export", *QUICK, "name=birds", f"run={tiny_run}", f"output_dir={folder}")
    assert ended.code == 0, ended.out
    return folder


# ComfyUI, by the rules of its sources.


def run_workflow(nodes, embeddings, lora, model_folder) -> torch.Tensor:
    """(3, H, W) uint8: what ComfyUI makes of a workflow in the form of its API."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None)
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    pipe.load_textual_inversion([{path.stem: load_file(path)["emb_params"]} for path in embeddings])
    known = {path.stem for path in embeddings}

    def encode(text: str) -> torch.Tensor:
        words = [word.removeprefix("embedding:") for word in text.split(" ")]
        assert all(word in known for word, full in zip(words, text.split(" "), strict=True) if "embedding:" in full)
        return pipe.encode_prompt(" ".join(words), "cpu", 1, False)[0]

    (sampler,) = (node["inputs"] for node in nodes.values() if node["class_type"] == "KSampler")
    text = {name: nodes[sampler[name][0]]["inputs"]["text"] for name in ("positive", "negative")}
    latent = nodes[sampler["latent_image"][0]]["inputs"]
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["denoise"]) == ("euler", "ddim_uniform", 1.0)
    conditioning = {name: encode(prompt) for name, prompt in text.items()}
    alphas = pipe.scheduler.alphas_cumprod.double()
    sigmas = ((1 - alphas) / alphas).sqrt()
    timesteps = list(range(1, len(sigmas), max(len(sigmas) // sampler["steps"], 1)))[::-1]
    levels = [float(sigmas[t]) for t in timesteps] + [0.0]
    factor = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, latent["height"] // factor, latent["width"] // factor)
    x = torch.randn(shape, generator=torch.manual_seed(sampler["seed"])) * levels[0]
    with torch.no_grad():
        for step, timestep in enumerate(timesteps):
            sigma = levels[step]
            eps = {
                name: pipe.unet(x / (sigma**2 + 1) ** 0.5, timestep, context).sample
                for name, context in conditioning.items()
            }
            guided = eps["negative"] + sampler["cfg"] * (eps["positive"] - eps["negative"])
            x = x + guided * (levels[step + 1] - sigma)
        pixels = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0]
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def test_comfyuis_workflow_gives_our_image(exported, tiny_run, tiny_sd_folder, workshop, tmp_path):
    nodes = json.loads((exported / "comfyui" / "workflow_api.json").read_text())
    models = exported / "comfyui" / "models"
    theirs = run_workflow(
        nodes, sorted((models / "embeddings").glob("*")), models / "loras" / "birds.safetensors", tiny_sd_folder
    )
    card = (exported / "README.md").read_text()
    command = re.search(r"partcraft generate ('prompt=[^`]*sample\.scheduler=euler sample\.steps=\d+)`", card)
    assert command is not None
    prompt, seed, *others = re.fullmatch(r"'(prompt=.*)' (seed=\d+) (\S+) (\S+)", command.group(1)).groups()
    ended = workshop("generate", prompt, seed, *others, "num_images=1", "sample.negative_prompt=a <part1:2>, blurry",
                     f"run={tiny_run}", f"output_dir={tmp_path}")  # fmt: skip
    assert ended.code == 0, ended.out
    (path,) = (path for path in tmp_path.glob("*.png") if path.stem != "sheet")
    ours = read_image(path)
    assert float((theirs.float() - ours.float()).abs().mean()) < 1
    assert torch.equal(read_image(exported / "comfyui" / "workflow.png"), ours)


def test_the_canvas_has_the_same_nodes_and_links(exported):
    canvas = json.loads((exported / "comfyui" / "workflow.json").read_text())
    nodes = json.loads((exported / "comfyui" / "workflow_api.json").read_text())
    by_id = {node["id"]: node for node in canvas["nodes"]}
    assert {str(number): node["type"] for number, node in by_id.items()} == {
        number: node["class_type"] for number, node in nodes.items()
    }
    wired = {}
    for link, origin, slot, target, place, kind in canvas["links"]:
        assert by_id[target]["inputs"][place]["link"] == link
        assert link in by_id[origin]["outputs"][slot]["links"]
        assert by_id[origin]["outputs"][slot]["type"] == by_id[target]["inputs"][place]["type"] == kind
        wired[str(target), by_id[target]["inputs"][place]["name"]] = [str(origin), slot]
    asked = {(n, k): v for n, node in nodes.items() for k, v in node["inputs"].items() if isinstance(v, list)}
    assert wired == asked
    (sampler,) = (node for node in canvas["nodes"] if node["type"] == "KSampler")
    seed, after, steps, *_ = sampler["widgets_values"]
    assert (seed, after, steps) == (pipeline_seed(canvas_seed(0)), "fixed", matching_steps(3))
    assert seed == int(float(seed)) < 2**53  # a browser keeps it
    chunks = Image.open(exported / "comfyui" / "workflow.png").info
    assert (json.loads(chunks["workflow"]), json.loads(chunks["prompt"])) == (canvas, nodes)


def test_steps_that_the_schedule_takes_as_we_do():
    assert [matching_steps(n) for n in (3, 20, 30, 28, 50, 60)] == [4, 20, 25, 25, 50, 50]


# A1111.


def test_side_cars_fill_in_the_fields_of_a1111(exported):
    lora = exported / "a1111" / "models" / "Lora"
    about = json.loads((lora / "birds.json").read_text())
    assert about["activation text"] == "birds-part1-0 birds-part2-0"
    assert about["negative text"] == "a birds-part1-2, blurry"
    assert (about["sd version"], about["preferred weight"]) == ("Unknown", 1.0)
    assert (lora / "birds.preview.png").is_file()
    for path in (exported / "a1111" / "embeddings").glob("*.safetensors"):
        assert "<lora:birds:1>" in json.loads(path.with_suffix(".json").read_text())["notes"]


def test_one_file_holds_adapter_and_parts(exported):
    """By the rule of A1111: the first word of a key tells an embedding, the second names it."""
    tensors = load_file(exported / "a1111_one_file" / "birds.safetensors")
    bundled = {key: value for key, value in tensors.items() if key.startswith("bundle_emb.")}
    assert sorted(bundled) == [
        "bundle_emb.birds-part1-0.emb_params",
        "bundle_emb.birds-part1-1.emb_params",
        "bundle_emb.birds-part1-2.emb_params",
        "bundle_emb.birds-part2-0.emb_params",
    ]
    for key, value in bundled.items():
        stem = key.split(".")[1]
        assert torch.equal(value, load_file(exported / "a1111" / "embeddings" / f"{stem}.safetensors")["emb_params"])
    adapter = load_file(exported / "a1111" / "models" / "Lora" / "birds.safetensors")
    assert tensors.keys() - bundled.keys() == adapter.keys()
    assert all(torch.equal(tensors[key], adapter[key]) for key in adapter)


def test_previews_have_generation_parameters_in_a1111s_form(exported):
    text = Image.open(exported / "a1111" / "embeddings" / "birds-part1-0.preview.png").info["parameters"]
    prompt, negative, last = text.split("\n")
    assert prompt == "a photo of a birds-part1-0 <lora:birds:1>"
    assert negative == "Negative prompt: a birds-part1-2, blurry"
    fields = dict(re.findall(r"([^:,]+): ([^,]+)(?:, |$)", last))
    assert (fields["Steps"], fields["Sampler"], fields["CFG scale"], fields["Size"]) == (
        "3",
        "DPM++ 2M",
        "7.5",
        "32x32",
    )
    assert fields["Seed"] == str(pipeline_seed(0))


def test_the_card_names_what_is_lost_without_a_message(exported):
    card = (exported / "README.md").read_text()
    assert "never a full stop or a comma" in card
    assert "zero-padded" in card


# The hub.


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as one commit needs; it keeps what it is given."""

    def _answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.refuses:
            self._answer({"error": "You have no right to write here"}, 403)
        elif self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            self._answer({"url": f"{self.server.address}/me/birds"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            self.server.committed = [json.loads(line) for line in body.splitlines()]
            self._answer({"commitUrl": f"{self.server.address}/me/birds/commit/1", "commitOid": "1", "success": True})
        else:
            self._answer({})

    def do_GET(self) -> None:
        self._answer({"id": "me/birds", "private": self.server.private, "siblings": [], "sha": "0" * 40, "tags": []})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.committed, server.created, server.private, server.refuses = [], [], {}, True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


def test_an_export_is_pushed_in_one_private_commit(hub, tiny_run, workshop, tmp_path):
    import base64

    folder = tmp_path / "birds"
    ended = workshop("export", "parts=[part2:0]", "to=[diffusers]", "sample.steps=2", "thumbnails=0", "name=birds",
                     "push=me/birds", f"run={tiny_run}", f"output_dir={folder}")  # fmt: skip
    assert ended.code == 0, ended.out
    assert f"Hub: {hub.address}/me/birds" in ended.out
    assert hub.created["visibility"] == "private"
    assert all(token == "Bearer hf_test" for _, token in hub.asked)
    files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in hub.committed[1:]}
    assert files == {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert "README.md" in files


def test_a_repository_that_is_public_gets_nothing_unless_asked(hub, tmp_path):
    (tmp_path / "README.md").write_text("card")
    hub.private = False
    with pytest.raises(UserError, match="is public, and nothing was uploaded"):
        push(tmp_path, ["README.md"], "me/birds", public=False, title="Export")
    assert not hub.committed
    push(tmp_path, ["README.md"], "me/birds", public=True, title="Export")
    assert hub.created["visibility"] == "public"
    assert len(hub.committed) == 2
    hub.refuses = True
    with pytest.raises(UserError, match=r"The export is complete.*hf upload me/birds"):
        push(tmp_path, ["README.md"], "me/birds", public=True, title="Export")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("push=birds",), "wanted OWNER/NAME"),
        (("push=me/a b",), "push=me/a b"),
        (("public=true",), "give that too"),
        (("push=me/birds", "public=true"), "under which licence the training images are"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_anything_is_exported(hub, tiny_run, workshop, overrides, message):
    ended = workshop("export", f"run={tiny_run}", *overrides)
    assert ended.code == 2
    assert message in " ".join(ended.out.split())


def test_without_a_token_nothing_is_exported(hub, tiny_run, workshop, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    ended = workshop("export", f"run={tiny_run}", "push=me/birds")
    assert ended.code == 2
    assert "needs a token" in ended.out
