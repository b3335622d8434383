"""What a configuration says, as frozen dataclasses with strict types. Values live in ``conf/`` alone: no defaults here.

``strict.build(TrainSettings, values, "")`` makes one from plain values and names every mistake.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from partcraft_lit.strict import Range

Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]
Rate = Annotated[float, Range(0, above=True)]
Scheduler = Literal["dpm++", "dpm++_trailing", "unipc", "ddim", "euler", "ddpm"]


@dataclass(frozen=True)
class PartsSettings:
    """Discovery of parts.

    Attributes:
        M: foreground parts; the background is one more.
        K: codes per part.
        features: which of the configured feature networks describes patches.
        source: where parts come from: "discover" finds them, "masks" takes those that the data set has, "classes" takes
            each class of images as one concept that fills them.
        codes: "kmeans" finds K codes per part, "class" takes the images' class labels as codes of foreground parts.
        on_too_few: what to do with fewer images than K: "lower" K, or "stop".
        max_patches: patches on which foreground and parts are fitted, drawn from all images.
        nredo, niter: restarts of each k-means, and steps of each.
        names: of the M parts, from the top of the image down; numbered if empty.
        foreground_clusters: clusters of the first tier, merged into object and background; "auto" tries several.
        center: subtract the mean feature first.
        smallest_speck: connected cells of one part that are fewer are given to their neighbours.
        min_cells: a part with fewer cells is absent from the image.
    """

    M: Positive
    K: Positive
    features: str
    source: Literal["discover", "masks", "classes"]
    codes: Literal["kmeans", "class"]
    on_too_few: Literal["lower", "stop"]
    max_patches: Annotated[int, Range(100)]
    nredo: Positive
    niter: Positive
    names: tuple[str, ...]
    foreground_clusters: Annotated[int, Range(2)] | Literal["auto"]
    center: bool
    smallest_speck: Count
    min_cells: Positive

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``parts.discovery.discover``, all but the seed."""
        others = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("M", "K", "features", "source")}
        return {"num_parts": self.M, "num_codes": self.K, **others}


@dataclass(frozen=True)
class MapperSettings:
    """The token mapper.

    Attributes:
        layers: linear layers behind the embedding; 0 is plain textual inversion.
        position: whether each part has a learnt vector added to all of its codes.
        norm_match: whether outputs are rescaled to the mean norm of the text encoder's own embeddings.
        hidden: width between the layers; None for that of the embedding.
        init_std: standard deviation of the embeddings at the start.
    """

    layers: Annotated[int, Range(0, 3)]
    position: bool
    norm_match: bool
    hidden: Positive | None
    init_std: Rate


@dataclass(frozen=True)
class LoraSettings:
    """The adapter of the UNet; ``alpha`` None means the rank."""

    rank: Positive
    alpha: Rate | None
    scope: Literal["cross", "all"]


@dataclass(frozen=True)
class LossSettings:
    """The loss of a step: diffusion loss + ``lambda_attn`` times attention loss.

    Attributes:
        lambda_attn: weight of the attention loss.
        attention: which attention loss; "none" leaves no trace of one.
        snr_gamma: gamma of min-SNR weighting; None weighs all timesteps alike.
        unprompted: what happens at pixels of parts that are not in the prompt: "ignore" them, or "released" for the
            behaviour of the published code (100 for each).
        normalizer: among what a place's attention is normalised: the "parts" of the prompt, or all of the text.
        region: where the diffusion loss counts: "all" places, or those of the "prompted" parts.
        region_mean: what the error of a region is divided by: all "latents", or the size of the "region".
    """

    lambda_attn: NonNegative
    attention: str
    snr_gamma: Rate | None
    unprompted: Literal["ignore", "released"]
    normalizer: Literal["parts", "softmax"]
    region: Literal["all", "prompted"]
    region_mean: Literal["latents", "region"]

    @property
    def uses_attention(self) -> bool:
        return self.attention != "none" and self.lambda_attn > 0


@dataclass(frozen=True)
class PhaseSettings:
    """A stretch of training.

    Attributes:
        steps: optimizer steps; None for the rest.
        groups: what trains in it; all else rests, its state untouched.
    """

    steps: Positive | None
    groups: tuple[Literal["mapper", "lora", "unet", "text_encoder"], ...]


@dataclass(frozen=True)
class OptimSettings:
    """AdamW, with a learning rate for each group of parameters.

    Attributes:
        lora_lr: of the adapter.
        mapper_lr: of the tokens.
        unet_lr: of the UNet's own weights, where a method trains them.
        text_encoder_lr: of the text encoder, likewise.
        weight_decay, betas, eps: AdamW's.
        warmup_steps: over which the rates rise from 0.
        cooldown_steps: last steps, over which the rates fall to 0; 0 keeps them to the end.
        total_steps: of the run; known from the configuration, since asking the trainer would start its loader.
        phases: what trains when; empty for everything at all times. The last phase goes on to the end.
    """

    lora_lr: NonNegative
    mapper_lr: NonNegative
    unet_lr: NonNegative
    text_encoder_lr: NonNegative
    weight_decay: NonNegative
    betas: tuple[Share, Share]
    eps: Rate
    warmup_steps: Count
    cooldown_steps: Count
    total_steps: int
    phases: tuple[PhaseSettings, ...]

    def rate(self, group: str) -> float:
        """Learning rate of a group, before any schedule."""
        return float(getattr(self, f"{group}_lr"))

    def factor(self, group: str, step: int) -> float:
        """What the learning rate is multiplied with at a step: warm-up, cool-down, and 0 while the group rests."""
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = max(0, self.total_steps - step)
        fall = min(1.0, left / self.cooldown_steps) if self.cooldown_steps else 1.0
        return rise * fall if self.trains(group, step) else 0.0

    @property
    def is_constant(self) -> bool:
        """Whether all rates stay as they are for the whole run."""
        return not (self.warmup_steps or self.cooldown_steps or self.phases)

    def trains(self, group: str, step: int) -> bool:
        """Whether a group trains at a step."""
        if not self.phases:
            return True
        end = 0
        for phase in self.phases[:-1]:
            end = step + 1 if phase.steps is None else end + phase.steps
            if step < end:
                return group in phase.groups
        return group in self.phases[-1].groups


@dataclass(frozen=True)
class DataSettings:
    """From images to batches.

    Attributes:
        batch_size: images per step and process.
        num_workers: processes that prepare batches; it changes no batch.
        flip: whether images are mirrored at random.
        crop: "random" or "center".
        crops: "cut": from the latents of the whole image; a number: so many crops of each image are encoded by
            themselves before training; "encode": each crop when its batch is trained on, and nothing is stored.
        present_only: whether captions leave out parts that the crop cut away.
        encode_batch_size: images per pass through the autoencoder when latents are stored.
        latents: number format of the stored latents.
        scale_variants: renderings of each image at other scales, drawn and encoded before training, that take its
            place; 0 trains on the images as they are.
    """

    batch_size: Positive
    num_workers: Count
    flip: bool
    crop: Literal["random", "center"]
    crops: Positive | Literal["cut", "encode"]
    present_only: bool
    encode_batch_size: Positive
    latents: Literal["float16", "float32"]
    scale_variants: Count


@dataclass(frozen=True)
class CaptionSettings:
    """Training captions.

    Attributes:
        template_prob: how often the tokens stand in one of the neutral templates; else they stand alone.
        shuffle: whether their order is drawn anew each time.
        drop_prob: probability of leaving out each part.
        background: whether the background has a token.
        class_noun: a word after the tokens: "auto" for the dataset's own noun, "" for none; "each" for the name of its
            part after each token.
        separator: what stands between two tokens, spaces included, such as " and ".
        templates: sentences with one "{}" each; empty for the 27 of Textual Inversion.
    """

    template_prob: Share
    shuffle: bool
    drop_prob: Share
    background: bool
    class_noun: str
    separator: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class TokenSettings:
    """The vectors of part tokens.

    Attributes:
        init: ordinary words whose vectors they start from: none for random ones, one for all foreground parts, or one
            for each; "auto" is the noun of the dataset. Only without a mapper (``mapper.layers=0``).
        trained: whether they train; else they stay the words they start from.
    """

    init: tuple[str, ...]
    trained: bool


@dataclass(frozen=True)
class PriorSettings:
    """Prior preservation: images without parts that the model must go on to draw as it did.

    Attributes:
        weight: of their diffusion loss, lambda; 0 for no prior images.
        prompt: what they show, such as "a photo of a bird"; "auto" is that with the noun of the dataset.
        images: how many the untrained model draws, once.
        dir: a folder of images to take instead.
        seed: of the first; image i has ``seed + i``.
        steps, guidance_scale, scheduler: how they are drawn.
        batch_size: how many are drawn at once.
    """

    weight: NonNegative
    prompt: str
    images: Positive
    dir: Path | None
    seed: int
    steps: Positive
    guidance_scale: NonNegative
    scheduler: Scheduler
    batch_size: Positive


@dataclass(frozen=True)
class SampleSettings:
    """How images are drawn."""

    steps: Annotated[int, Range(1, 1000)]  # no model has a longer noise schedule
    guidance_scale: NonNegative
    scheduler: Scheduler
    negative_prompt: str
    batch_size: Positive


@dataclass(frozen=True)
class EvalSettings:
    """Scores at the end of a run.

    Attributes:
        enabled: whether a training run ends with them.
        reconstructions: source images that are drawn again from their own codes, at most.
        compositions: hybrids drawn for each number of species.
        species: numbers of source images that a hybrid is composed of.
        concepts: pictures per concept prompt, where a data set has concepts; 0 for none.
        untrained: pictures per protocol that the untrained model draws, as the lower bound; 0 for none.
        ceiling_images: real images on which the ceiling is measured, at most.
        pictures: networks by which whole pictures are scored: rows of the group ``metrics``.
        neighbours: real images among which copies are looked for, at most; 0 for none.
        hybrids: columns of the report's composition grid.
        seed: seed of everything drawn for the scores.
    """

    enabled: bool
    reconstructions: Count
    compositions: Count
    species: tuple[Annotated[int, Range(1)], ...]
    concepts: Count
    untrained: Count
    ceiling_images: Count
    pictures: tuple[str, ...]
    neighbours: Count
    hybrids: Positive
    seed: int


@dataclass(frozen=True)
class PathSettings:
    """Where things are written.

    Attributes:
        logs: root of run folders.
        data: where published data sets are fetched to.
        store: root of what is computed once.
    """

    logs: Path
    data: Path
    store: Path


@dataclass(frozen=True)
class HardwareSettings:
    """What is done to fit into the memory of a device. None of it changes what is trained, but for rounding.

    Attributes:
        gradient_checkpointing: whether the UNet's activations are computed again in the backward pass.
        max_batch_size: images that go through the networks at once; a larger batch is taken in several passes.
        offload: networks that rest on the CPU while they are not needed: the VAE, which works before training and for
            samples, and that of the patch features. The text encoders stay: gradients of part tokens run through them.
        compile: whether the UNet's transformer blocks are compiled, which takes minutes at the start.
    """

    gradient_checkpointing: bool
    max_batch_size: Positive | None
    offload: tuple[Literal["vae", "features"], ...]
    compile: bool

    def passes(self, batch_size: int) -> int:
        """In how many equal passes a batch is taken: the fewest of at most ``max_batch_size`` images each."""
        if self.max_batch_size is None:
            return 1
        most = self.max_batch_size
        return next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= most)

    def capped(self, sample: SampleSettings) -> SampleSettings:
        """Sampling with at most ``max_batch_size`` images at once; each image is the same."""
        most = sample.batch_size if self.max_batch_size is None else min(sample.batch_size, self.max_batch_size)
        return replace(sample, batch_size=most)


@dataclass(frozen=True)
class DiscoverSettings:
    """``partcraft discover``."""

    seed: int
    parts: PartsSettings
    paths: PathSettings


@dataclass(frozen=True)
class TrainSettings:
    """``partcraft train``; ``method`` is a :class:`partcraft_lit.methods.method.Recipe`."""

    seed: int
    parts: PartsSettings
    data: DataSettings
    method: Any
    prior: PriorSettings
    loss: LossSettings
    mapper: MapperSettings
    lora: LoraSettings
    optim: OptimSettings
    sample: SampleSettings
    eval: EvalSettings
    hardware: HardwareSettings
    paths: PathSettings


@dataclass(frozen=True)
class GenerateSettings:
    """``partcraft generate``.

    Attributes:
        prompt: text with part tokens, such as "a photo of a <head:3> <wing:7>*1.3 bird"; None where there is a file.
        prompts_file: a text file with one prompt per line; empty lines and those that begin with "#" are passed over.
        num_images: how many of each prompt; image i has seed ``seed + i``.
        seed: seed of the first.
        sample: how they are drawn.
        output_dir: where to; None for a folder in the run.
    """

    prompt: str | None
    prompts_file: Path | None
    num_images: Positive
    seed: int
    sample: SampleSettings
    output_dir: Path | None


@dataclass(frozen=True)
class ExportCheckSettings:
    """How an export is proved, and by how much it may differ.

    Attributes:
        steps: of the picture that both sides draw.
        weights: largest difference of a layer's change, as a share of its largest entry.
        text: the same for what the text encoders give.
        image: mean difference of the picture in grey levels of 255.
    """

    steps: Positive
    weights: NonNegative
    text: NonNegative
    image: NonNegative


@dataclass(frozen=True)
class ExportSettings:
    """``partcraft export``.

    Attributes:
        chosen: parts to export, each "head:17", or "head" for all variants of a part; None for all that were trained.
        to: for which tools.
        name: of the bundle; file names begin with it. None takes that of the run.
        number_format: of the files.
        data_license: of the training pictures, as text; "" if unknown.
        thumbnails: parts that get a picture, at most.
        seed: of those pictures and of the check's.
        sample: how they are drawn.
        check: how the files are proved.
        output_dir: where to; None for a folder in the run.
    """

    chosen: tuple[str, ...] | None
    to: tuple[Literal["diffusers", "a1111", "comfyui"], ...]
    name: str | None
    number_format: Literal["float32", "float16"]
    data_license: str
    thumbnails: Count
    seed: int
    sample: SampleSettings
    check: ExportCheckSettings
    output_dir: Path | None


@dataclass(frozen=True)
class MergeSettings:
    """``partcraft merge``.

    Attributes:
        runs: folders or names of the runs, in the order in which their concepts are numbered.
        captions_file: ordinary captions, one a line; None takes templates with common nouns.
        seed: of a data set that is drawn.
        output_dir: where to; None for a new run folder.
        paths: where run folders are.
    """

    runs: tuple[str, ...]
    captions_file: Path | None
    seed: int
    output_dir: Path | None
    paths: PathSettings


@dataclass(frozen=True)
class ArchiveSettings:
    """One archive of a published data set.

    Attributes:
        file: its name.
        urls: where it is, best first.
        bytes, sha256: what it is known by; None if unknown.
        into: folder inside the data set's that it is unpacked to.
    """

    file: str
    urls: tuple[str, ...]
    bytes: Positive | None
    sha256: str | None
    into: Path


@dataclass(frozen=True)
class DownloadSettings:
    """A published data set as it is fetched.

    Attributes:
        name: of the data set's configuration.
        dir: where it goes.
        marks: files and folders that show that it is there.
        page: where a person finds it.
        archives: what it consists of.
    """

    name: str
    dir: Path
    marks: tuple[str, ...]
    page: str
    archives: tuple[ArchiveSettings, ...]


@dataclass(frozen=True)
class FetchSettings:
    """``partcraft fetch``.

    Attributes:
        download: the data set.
        archive: local archive, or folder of archives; None downloads.
        keep_archives: whether downloaded archives stay after unpacking.
        tries, timeout_s, pause_s: of each download; see ``data.download``.
        max_bytes, max_files: no more is unpacked.
        paths: where run folders are.
    """

    download: DownloadSettings
    archive: Path | None
    keep_archives: bool
    tries: Positive
    timeout_s: Rate
    pause_s: NonNegative
    max_bytes: Positive
    max_files: Positive
    paths: PathSettings


@dataclass(frozen=True)
class LoopLength:
    """How long and how fast an embedded network trains; see ``pretrain.loop.LoopSettings``."""

    steps: Positive
    batch_size: Positive
    lr: Rate
    warmup: Count
    ema_decay: Share
    precision: Literal["fp32", "bf16"]
    save_every_s: NonNegative


@dataclass(frozen=True)
class PretrainSettings:
    """``partcraft pretrain``.

    Attributes:
        stage: which network: the text-to-image "model", the patch "features" or the "oracle" of the scores.
        seed: of pictures and first weights.
        output_dir: folder that the weights replace; None leaves them in the run folder.
        autoencoder, denoiser: of the model, one after the other.
        features: of the patch features.
        oracle, oracle_missing: of the oracle, on whole creatures and then with parts missing.
        paths: where run folders are.
    """

    stage: Literal["model", "features", "oracle"]
    seed: int
    output_dir: Path | None
    autoencoder: LoopLength
    denoiser: LoopLength
    features: LoopLength
    oracle: LoopLength
    oracle_missing: LoopLength
    paths: PathSettings


@dataclass(frozen=True)
class ColumnSettings:
    """One column of a table.

    Attributes:
        metric: a column of ``scores.csv`` with ``per="image"``, else a key of the run's ``scores.json`` or, at its last
            step, of ``metrics.jsonl``, without the protocol. A * stands for anything: one column for each metric that
            the runs have, none if they have none.
        protocols: the sets of pictures it is taken over; empty for numbers that are not of pictures.
        higher: whether more is better.
        per: what it has one value for: each "image", or each "run".
        panel: panel of the figure to which it gives a point, where columns are points.
        x: place of that point.
        times: what the values are multiplied by for the table.
        block: heading of the part of the table that it stands in; None for the panel's.
    """

    metric: str
    protocols: tuple[str, ...] = ()
    higher: bool = True
    per: Literal["image", "run"] = "image"
    panel: str | None = None
    x: float | None = None
    times: float = 1.0
    block: str | None = None


@dataclass(frozen=True)
class RowSettings:
    """One row of a table: a method or a setting, as overrides of ``partcraft train``.

    Attributes:
        overrides: at any scale.
        small, paper: more of them, at that scale alone.
        reported: column -> value that the paper gives.
        curve: which line of the figure it is a point of.
        x: place of that point.
    """

    overrides: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    paper: tuple[str, ...] = ()
    reported: dict[str, float] = field(default_factory=dict)
    curve: str = ""
    x: float | None = None


@dataclass(frozen=True)
class FigureSettings:
    """The figure of a table.

    Attributes:
        kind: "bars" has a bar for each row; "lines" a point for each row, along ``x`` of the rows; "columns" a line for
            each row, along ``x`` of the columns.
        panels: columns that are shown, each in a panel of its own; with "columns" the names of the panels.
        x: what is along the axis.
        log: whether that axis is logarithmic; zero then stands at its left end.
    """

    kind: Literal["bars", "lines", "columns"]
    panels: tuple[str, ...]
    x: str = ""
    log: bool = False


@dataclass(frozen=True)
class ProtocolSettings:
    """What a table compares.

    Attributes:
        name: of the table, and of its folder.
        question: that it answers.
        scales: scale -> overrides that every run has.
        seeds: of training, one run each.
        rows: name -> row.
        columns: name -> column.
        figure: how it is drawn.
        maps: a picture in the folder of every run; those of the rows are shown side by side in ``maps.png``.
    """

    name: str
    question: str
    scales: dict[str, list[str]]
    seeds: tuple[int, ...]
    rows: dict[str, RowSettings]
    columns: dict[str, ColumnSettings]
    figure: FigureSettings
    maps: str = ""


@dataclass(frozen=True)
class TableSettings:
    """``partcraft table``.

    Attributes:
        table: the protocol.
        scale: "small" runs on the embedded world, "paper" on the data and the backbone of the paper.
        rows: names of the rows that are wanted; None for all.
        overrides: of every run, beside those of the protocol, with blanks between them.
        jobs: training processes at once; the cores are divided among them.
        gpus: numbers of the CUDA devices that are dealt out to the processes; empty leaves that to each of them.
        verify: compute every number again from the stored pictures and compare, and train nothing.
        level: share of intervals that should hold the true mean.
        resamples: of the bootstrap.
        output_dir: where the table goes; None for ``experiments/<name>``.
        paths: where runs are, and what is computed once.
    """

    table: ProtocolSettings
    scale: Literal["small", "paper"]
    rows: tuple[str, ...] | None
    overrides: str
    jobs: Positive
    gpus: tuple[int, ...]
    verify: bool
    level: Annotated[float, Range(0, 1, above=True)]
    resamples: Annotated[int, Range(100)]
    output_dir: Path | None
    paths: PathSettings


@dataclass(frozen=True)
class StoreSettings:
    """``partcraft store``.

    Attributes:
        action: "stats" says what there is, "verify" reads everything and names what is damaged, "prune" makes room.
        kind: of what entries; None for all kinds.
        older_than_days: prune also drops what was written before; None drops only what is of no use.
        idle_minutes: prune leaves files alone that were written to since: their process may still run.
        paths: where the store is.
    """

    action: Literal["stats", "verify", "prune"]
    kind: str | None
    older_than_days: NonNegative | None
    idle_minutes: NonNegative
    paths: PathSettings


@dataclass(frozen=True)
class DoctorSettings:
    """``partcraft doctor``, beside the settings of the run that it is about.

    Attributes:
        memory_gb: of the device that is planned for; None for what this one has free.
        measure: whether steps are measured, or only what is missing is looked for.
        runs: of a sweep, one after another.
    """

    memory_gb: Rate | None
    measure: bool
    runs: Positive
