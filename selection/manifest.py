"""Manifest: what a store says of itself, as it stands in its manifest.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selection.corpus import Shard

if TYPE_CHECKING:
    from selection.encoders import Encoder


@dataclass
class FileEntry:
    """A file with its rows and sha256; path relative to the store where it lies inside, else absolute."""

    path: str
    rows: int
    sha256: str


@dataclass
class CorpusEntry:
    """One corpus: what was asked for, the files it came from, and the shards it became.

    Attributes:
        blank: rows without text.
        filtered: rows that the condition left out.
        left_out: both, of each source, where these stay in place.
        whole: how far those of its files in the store go that files to come would not change, where they do not stay in
            place; and by what they were made.
    """

    name: str
    spec: dict[str, Any]
    sources: list[FileEntry]
    files: list[FileEntry]
    blank: int
    filtered: int
    shards: list[Shard]
    left_out: list[list[int]] = field(default_factory=list)
    whole: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CorpusEntry:
        sources, files = ([FileEntry(**file) for file in value[name]] for name in ("sources", "files"))
        shards = [Shard(**shard) for shard in value["shards"]]
        return cls(**{**value, "sources": sources, "files": files, "shards": shards})

    @property
    def in_use(self) -> list[FileEntry]:
        """The files that passages are read from: the sources themselves where they stay in place, then the store's."""
        read = {shard.path for shard in self.shards}
        return [*(f for f in self.sources if f.path in read), *self.files]

    @property
    def passages(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        return sum(shard.text_bytes for shard in self.shards)


@dataclass
class EncoderEntry:
    """One encoder's embeddings.

    Attributes:
        shards: a shard's text fingerprint -> its embedding file.
        files: what was fitted to the corpus, where the encoder is of that kind.
        prompt: see `selection.encoders.EncoderSpec`.
        settings: ``engine``; ``index``, the kind that is searched; ``cascade``, the precision that one over it ends in;
            for a fitted encoder how it was made and what it was found to be worth (``recall``), and ``tried`` until a
            build has taken it.
    """

    model: str
    precision: str
    max_tokens: int | None
    fingerprint: str
    dim: int
    shards: dict[str, FileEntry] = field(default_factory=dict)
    files: list[FileEntry] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EncoderEntry:
        shards = {text: FileEntry(**file) for text, file in value["shards"].items()}
        return cls(**{**value, "shards": shards, "files": [FileEntry(**file) for file in value.get("files", [])]})

    def covers(self, texts: set[str]) -> bool:
        """Whether all of these texts, by their fingerprints, are embedded."""
        return texts <= self.shards.keys()

    @classmethod
    def of(cls, encoder: Encoder) -> EncoderEntry:
        """An encoder that has embedded nothing yet."""
        one = encoder
        return cls(one.model, one.precision, one.max_tokens, one.fingerprint, one.dim, prompt=one.prompt)


@dataclass
class IndexBlock:
    """One FAISS file of an index: the passages of consecutive shards, by the fingerprint of their embeddings."""

    file: FileEntry
    shards: int
    embeddings: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IndexBlock:
        return cls(**{**value, "file": FileEntry(**value["file"])})


@dataclass
class IndexEntry:
    """One index, block by block, and the fingerprint of the embeddings it was built from.

    Attributes:
        lists: inverted lists, 0 where it has none.
        settings: how it is searched and what that was found to be worth; empty while it is being built.
    """

    encoder: str
    kind: str
    embeddings: str
    lists: int = 0
    blocks: list[IndexBlock] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IndexEntry:
        return cls(**{**value, "blocks": [IndexBlock.from_json(block) for block in value["blocks"]]})


@dataclass
class Manifest:
    """All that a store knows.

    Attributes:
        corpora: in order.
        dry_run: slug of the encoder that the last dry run chose, until a build takes one.
        pending: new ones, or newer states of some, which a build or its dry run has read and not embedded yet; only
            builds see them.
        encoders: by slug.
        indexes: by ``slug-kind``.
    """

    corpora: list[CorpusEntry] = field(default_factory=list)
    pending: list[CorpusEntry] = field(default_factory=list)
    encoders: dict[str, EncoderEntry] = field(default_factory=dict)
    indexes: dict[str, IndexEntry] = field(default_factory=dict)
    dry_run: str | None = None

    @property
    def in_use(self) -> list[str]:
        """Slugs of the encoders that have embeddings; where none has any, of those that a build has begun with."""
        begun = [slug for slug, entry in self.encoders.items() if not entry.settings.get("tried")]
        return [slug for slug in begun if self.encoders[slug].shards] or begun

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Manifest:
        # An index of an earlier version, which knew no blocks, is made anew.
        indexes = {name: entry for name, entry in value["indexes"].items() if "blocks" in entry}
        return cls(
            [CorpusEntry.from_json(entry) for entry in value["corpora"]],
            [CorpusEntry.from_json(entry) for entry in value.get("pending", [])],
            {slug: EncoderEntry.from_json(entry) for slug, entry in value["encoders"].items()},
            {name: IndexEntry.from_json(entry) for name, entry in indexes.items()},
            value.get("dry_run"),
        )
