"""Adapts each loader, ours included, to the same interface for measurement, used as its documentation says.

Every adapter stores the same payloads in shards of 64 MB and yields them shuffled by a fixed seed. Imports are inside
`load`, because they are timed separately and because a package may be missing. If a loader yields only batches, a
sample is a batch of its own, so that collation of megabytes is not measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

Payload = bytes | memoryview

SEED = 1
SHARD_BYTES = 64_000_000
# Shuffle buffer of webdataset and Energon, in samples. Their tutorials say 1,000: at 1 MB, a gigabyte per worker.
BUFFER = 100


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over the samples, new or resumed.

    `state()` is what a checkpoint would hold: picklable, and valid after any sample that `payloads` has yielded.
    """

    payloads: Iterator[Payload]
    state: Callable[[], Any]


class Contender(Protocol):
    """A loader under measurement. Each method is called in a fresh process, after `load`."""

    package: str
    """The distribution whose version is reported."""
    views: bool
    """Whether `read` without workers can yield memory-mapped views; `views=False` then asks for bytes."""
    resumes: str
    """How it resumes at a sample, in a few words."""

    def load(self) -> None:
        """Import everything the other methods need. `ImportError` means that the loader is not installed."""

    def write(self, folder: Path, count: int, payload: Callable[[int], bytes]) -> None:
        """Store payloads 0 to `count` - 1 in its own format under `folder`, which exists and is empty."""

    def read(self, folder: Path, workers: int, views: bool, state: Any | None) -> Pass:
        """Yield each payload once, in an order that is shuffled and the same in every process.

        With `state` (of a pass with as many workers) resume after the sample at which it was taken. Timing starts with
        this call. `views` is true only if the class allows it and `workers` is 0; views must stay readable.
        """


class _CountingIterable:
    """An iterable that counts the samples taken from it."""

    def __init__(self, samples: Iterable[Payload], count: int) -> None:
        self._samples = samples
        self.count = count

    def __iter__(self) -> Iterator[Payload]:
        for sample in self._samples:
            self.count += 1
            yield sample


class Webdataset:
    """Plain tars, read from start to end, shuffled by shards and in a buffer."""

    package = "webdataset"
    views = False
    resumes = "by replay: it has no state, so the first samples are read again and dropped"

    def load(self) -> None:
        """Import webdataset."""
        self._wds: Any = importlib.import_module("webdataset")

    def write(self, folder: Path, count: int, payload: Callable[[int], bytes]) -> None:
        """Write tars with the package's own writer."""
        with self._wds.ShardWriter(f"{folder}/%05d.tar", maxsize=SHARD_BYTES, verbose=0) as writer:
            for index in range(count):
                writer.write({"__key__": f"{index:08d}", "bin": payload(index)})

    def read(self, folder: Path, workers: int, views: bool, state: Any | None) -> Pass:
        """`WebDataset` under a `WebLoader`; both shuffles take a seed, without which the order would not repeat."""
        shards = sorted(map(str, folder.glob("*.tar")))
        dataset = self._wds.WebDataset(shards, shardshuffle=len(shards), detshuffle=True, seed=SEED)
        dataset = dataset.compose(self._wds.detshuffle(BUFFER, BUFFER, SEED)).map(itemgetter("bin"))
        loader = self._wds.WebLoader(dataset, batch_size=None, num_workers=workers)
        if state:
            loader = loader.slice(state, None)
        counting = _CountingIterable(loader, state or 0)
        return Pass(iter(counting), lambda: counting.count)


class Litdata:
    """Chunks that are memory-mapped on a local disk."""

    package = "litdata"
    views = True
    resumes = "StreamingDataLoader.state_dict and load_state_dict"

    def load(self) -> None:
        """Import litdata."""
        self._litdata: Any = importlib.import_module("litdata")

    def write(self, folder: Path, count: int, payload: Callable[[int], bytes]) -> None:
        """`optimize`, as its guide says; one worker, so that chunks are as large as the other loaders' shards."""
        self._litdata.optimize(
            fn=payload,
            inputs=list(range(count)),
            output_dir=str(folder),
            chunk_bytes=SHARD_BYTES,
            num_workers=1,
            keep_data_ordered=True,
            verbose=False,
        )

    def read(self, folder: Path, workers: int, views: bool, state: Any | None) -> Pass:
        """`StreamingDataset` under its loader.

        Stored bytes come as views of the mapping. A worker cannot send a view: without `transform` the main process
        would wait forever.
        """
        transform = None if views else bytes
        dataset = self._litdata.StreamingDataset(str(folder), shuffle=True, seed=SEED, transform=transform)
        loader = self._litdata.StreamingDataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=itemgetter(0))
        if state is not None:
            loader.load_state_dict(state)
        return Pass(iter(loader), loader.state_dict)


class Streaming:
    """mosaicml-streaming: MDS shards, read by position."""

    package = "mosaicml-streaming"
    views = False
    resumes = "StreamingDataLoader.state_dict and load_state_dict"

    def load(self) -> None:
        """Import streaming, which imports torchvision and transformers."""
        _import_torchvision()
        self._streaming: Any = importlib.import_module("streaming")

    def write(self, folder: Path, count: int, payload: Callable[[int], bytes]) -> None:
        """Write MDS shards with the package's own writer."""
        columns = {"payload": "bytes"}
        with self._streaming.MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
            for index in range(count):
                writer.write({"payload": payload(index)})

    def read(self, folder: Path, workers: int, views: bool, state: Any | None) -> Pass:
        """`StreamingDataset` under its loader, with the default shuffle."""
        dataset = self._streaming.StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=SEED, batch_size=1)
        # The loader counts samples by the length of a batch's values: the default collation keeps bytes in a list.
        loader = self._streaming.StreamingDataLoader(dataset, batch_size=1, num_workers=workers)
        if state is not None:
            loader.load_state_dict(state)
        return Pass((batch["payload"][0] for batch in loader), loader.state_dict)


class Energon:
    """megatron-energon: plain tars with an index beside them."""

    package = "megatron-energon"
    views = False
    resumes = "SavableDataLoader.save_state_rank and restore_state_rank"

    def load(self) -> None:
        """Import Energon, and webdataset, whose writer makes its tars."""
        self._energon: Any = importlib.import_module("megatron.energon")
        self._factory: Any = importlib.import_module("megatron.energon.flavors.webdataset").BaseWebdatasetFactory
        self._tars = Webdataset()
        self._tars.load()

    def write(self, folder: Path, count: int, payload: Callable[[int], bytes]) -> None:
        """Write tars and the metadata of `energon prepare`; a text sample is the simplest type that holds bytes."""
        self._tars.write(folder, count, payload)
        shards = sorted(path.name for path in folder.glob("*.tar"))
        self._factory.prepare_dataset(folder, shards, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1)
        sample = "sample_type: {__module__: megatron.energon, __class__: TextSample}\nfield_map: {text: bin}\n"
        (folder / ".nv-meta" / "dataset.yaml").write_text(sample)

    def read(self, folder: Path, workers: int, views: bool, state: Any | None) -> Pass:
        """A train dataset, one epoch of it, under the savable loader."""
        encoder = self._energon.DefaultTaskEncoder()
        # No decoder: stored bytes are yielded unchanged.
        encoder.decoder = None
        dataset = self._energon.get_train_dataset(
            folder,
            worker_config=self._energon.WorkerConfig(rank=0, world_size=1, num_workers=workers),
            batch_size=None,
            shuffle_buffer_size=BUFFER,
            max_samples_per_sequence=BUFFER,
            repeat=False,
            task_encoder=encoder,
        )
        loader = self._energon.get_savable_loader(dataset)
        if state is not None:
            loader.restore_state_rank(state)
        return Pass((sample.text for sample in loader), loader.save_state_rank)


class Vdot:
    """Our own stream: plain tars, memory-mapped, and a mixture with the location of each sample."""

    package = "vdot-data"
    views = True
    resumes = "Stream.state_dict and Stream(state=...)"

    def load(self) -> None:
        """Import the stream."""
        self._stream: Any = importlib.import_module("training.data.stream").Stream

    def write(self, folder: Path, count: int, payload: Callable[[int], bytes]) -> None:
        """Write shards as the pipeline does, and a mixture of one task; its clips have a placeholder shape, as they are
        never decoded."""
        import pyarrow as pa

        from pipeline.formats import shards
        from pipeline.mixture import mixture
        from pipeline.storage.folder import Folder

        out, rows = Folder(str(folder / "data")), []
        scratch = folder / "scratch"
        scratch.mkdir()
        per_shard = max(1, SHARD_BYTES // len(payload(0)))
        for start in range(0, count, per_shard):
            writer = shards.ShardWriter(scratch, "shards", "benchmark")
            for index in range(start, min(start + per_shard, count)):
                writer.add(f"{index:032x}", {"bin": payload(index)})
            for key, location in writer.close(out).items():
                place: dict[str, Any] = {
                    "layer": "base",
                    "shard": location.shard,
                    "offset": location.offset,
                    "bytes": location.size,
                }
                place["crc32"] = location.crc32
                shape = dict.fromkeys(("frames", "height", "width", "references"), 1)
                row = {"dataset": "data", "clip_id": key, "split": mixture.TRAIN, "tasks": ["text"]}
                rows.append(row | shape | {"places": [place]})
        streams = (mixture.Stream("data", "text", count, Fraction(1)),)
        step, datasets = mixture.Step(micro_batches=1), {"data": (out.url, 1)}
        definition = mixture.Mixture(
            "benchmark", SEED, 0.0, step, mixture.StartPoint(), datasets, {"text": ("text",)}, streams
        )
        mixture.write(definition, pa.Table.from_pylist(rows, schema=mixture.SCHEMA), str(folder / "mixed"))

    def read(self, folder: Path, workers: int, views: bool, state: Any | None) -> Pass:
        """One pass over the mixture, which is endless."""
        stream = self._stream(str(folder / "mixed"), form="members", workers=workers, state=state)
        (bucket,) = stream.order.buckets
        remaining = stream.order.count_clips(bucket) - stream.position
        payloads = (memoryview(batch.items[0]["bin"]) for step in islice(stream, remaining) for batch in step)
        # With workers, payloads are views of memory that a worker filled: there is nothing to copy.
        return Pass(payloads if views or workers else map(bytes, payloads), stream.state_dict)


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "vdot": Vdot,
    "webdataset": Webdataset,
    "litdata": Litdata,
    "streaming": Streaming,
    "energon": Energon,
}

_libraries: list[Any] = []


def _import_torchvision() -> None:
    """Import torchvision, also with a CPU build of torch, where its wheel fails because two operators are missing.

    If it loads by itself, nothing else is done. streaming uses none of its operators.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library: Any = importlib.import_module("torch.library").Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        # The operators disappear with the object that declared them.
        _libraries.append(library)
        importlib.import_module("torchvision")
