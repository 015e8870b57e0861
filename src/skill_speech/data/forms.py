"""The forms of data: one table of how each is recognized and read, for `prepare` and every `--data`.

A form is recognized by its contents, the first that fits; its name is what is printed and what docs/data.md calls it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from lhotse.cut import Cut

from ..errors import InputError
from . import hugging_face, kaldi, layouts, rows, tars
from .lhotse_manifests import ManifestReader
from .lines import is_regular
from .listing import Listing
from .remote import is_remote
from .shards import INDEX, open_shards

PAGE = "docs/data.md"
MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")


class Options(NamedTuple):
    """How data is to be read.

    Attributes:
        absolute_paths: what names files may name files outside its own folder.
        column: the one of a table with the paths, or of a dataset with the audio.
        bare: without what training does not need of a manifest.
        labels: but with its supervisions' custom["label"].
    """

    absolute_paths: bool = False
    column: str | None = None
    bare: bool = False
    labels: bool = False


@dataclass(frozen=True)
class Form:
    """A form of data on this machine.

    Attributes:
        name: with its article.
        fits: whether a path is of this form.
        read: what it holds: a listing, or cuts.
        inside: its audio has no files of its own, so that a manifest cannot name it.
        together: reads several paths as one, where a glob finds them.
    """

    name: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, Options], Listing | Iterable[Cut]]
    inside: bool = False
    together: Callable[[Sequence[Path], str, Options], Listing] | None = None


class Source(NamedTuple):
    """Data of a known form.

    Attributes:
        form: the name of the form.
        path: where it is, as given; of a glob the glob.
        content: a listing, or cuts.
        inside: as of the form.
    """

    form: str
    path: str
    content: Listing | Iterable[Cut]
    inside: bool


FOLDERS = (
    Form(
        "skill-speech shards",
        lambda path: (path / INDEX).is_file(),
        lambda path, options: open_shards(path, options.absolute_paths),
        inside=True,
    ),
    Form(
        "lhotse Shar",
        tars.is_shar,
        lambda path, options: tars.open_shar(path, options.absolute_paths, options.labels or not options.bare),
        inside=True,
    ),
    Form(
        "a Hugging Face dataset on disk",
        hugging_face.is_saved,
        lambda path, options: hugging_face.list_saved(path, options.absolute_paths, options.column),
        inside=True,
    ),
    Form("a Kaldi directory", kaldi.is_kaldi, lambda path, options: kaldi.list_kaldi(path, options.absolute_paths)),
    Form(
        "a folder of Parquet files",
        hugging_face.has_parquet,
        lambda path, options: hugging_face.list_parquet_folder(path, options.absolute_paths, options.column),
        inside=True,
    ),
    Form(
        "a folder of WebDataset tar files",
        tars.has_tars,
        lambda path, options: tars.list_tar_folder(path, options.absolute_paths),
        inside=True,
    ),
    Form(
        "a folder of audio", lambda path: True, lambda path, options: layouts.list_folder(path, options.absolute_paths)
    ),
)

FILES = (
    Form(
        "an audio file",
        layouts.is_audio,
        lambda path, options: layouts.list_files([path], str(path)),
        together=lambda paths, source, options: layouts.list_files(paths, source),
    ),
    Form(
        "a WebDataset tar file",
        tars.is_tar,
        lambda path, options: tars.list_tars([path], str(path)),
        inside=True,
        together=lambda paths, source, options: tars.list_tars(paths, source),
    ),
    Form(
        "a Parquet file",
        hugging_face.is_parquet,
        lambda path, options: hugging_face.list_parquet([path], str(path), options.absolute_paths, options.column),
        inside=True,
        together=lambda paths, source, options: hugging_face.list_parquet(
            paths, source, options.absolute_paths, options.column
        ),
    ),
    Form(
        "JSON lines that name audio",
        rows.is_json_lines,
        lambda path, options: rows.list_json_lines(path, options.absolute_paths, options.column),
    ),
    Form(
        "a lhotse manifest",
        lambda path: path.name.endswith(MANIFEST_SUFFIXES),
        lambda path, options: ManifestReader(path, options.absolute_paths, bare=options.bare, labels=options.labels),
    ),
    Form(
        "a split of Common Voice",
        rows.is_common_voice,
        lambda path, options: rows.list_common_voice(path, options.absolute_paths, options.column),
    ),
    Form("a fairseq tsv", layouts.is_tsv, lambda path, options: layouts.list_tsv(path, options.absolute_paths)),
    Form(
        "a table with a header",
        rows.is_table,
        lambda path, options: rows.list_table(path, options.absolute_paths, options.column),
    ),
    Form("a text of paths", layouts.is_list, lambda path, options: layouts.list_paths(path, options.absolute_paths)),
)


@dataclass(frozen=True)
class Refused:
    """A form that is known and not read, and what to do instead."""

    name: str
    fits: Callable[[Path], bool]
    instead: str


REFUSED = (
    Refused(
        "a Common Voice folder",
        lambda path: (path / "clips").is_dir() and any(map(rows.is_common_voice, path.glob("*.tsv"))),
        "give one of its splits, such as train.tsv, or clips/ for all of its audio without transcripts",
    ),
    Refused(
        "a file of a Kaldi directory",
        lambda path: path.is_file() and path.suffix in (".scp", ".ark"),
        "give the directory, with wav.scp in it",
    ),
    Refused(
        "a packed archive",
        lambda path: path.is_file() and path.suffix.lower() in (".zip", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"),
        "unpack it, and give the folder or the tar file",
    ),
    Refused(
        "a packed archive", lambda path: path.name.endswith(".tar.gz"), "unpack it, and give the folder or the tar file"
    ),
    Refused(
        "a JSON document",
        lambda path: path.is_file() and path.suffix == ".json",
        "write one object per line with the path as audio_filepath, as NeMo does",
    ),
    Refused(
        "a spreadsheet",
        lambda path: path.suffix.lower() in (".xlsx", ".xls", ".ods"),
        "save it as CSV with a header",
    ),
    Refused(
        "a pickle",
        lambda path: path.suffix.lower() in (".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz"),
        "pickles can run code; save it as CSV with a header",
    ),
)

KNOWN_SOURCES = (
    "a folder of audio, a LibriSpeech folder, an audio file, a table with a header, a fairseq .tsv, a lhotse manifest "
    f"of cuts or recordings (.jsonl, .jsonl.gz), shards, or another form of {PAGE}"
)


def open_sources(data: str | Path | Sequence[str | Path], options: Options) -> list[Source]:
    """What some data holds: a path, a glob, an address, or several of them.

    Raises:
        InputError: there is nothing, it is of no known form, or not as its form has to be.
    """
    given = [data] if isinstance(data, str | Path) else list(data)
    if not given:
        raise InputError("the list of data is empty")
    sources = [source for one in given for source in _open(one, options)]
    listings = [source for source in sources if isinstance(source.content, Listing)]
    if len(listings) < 2:
        return sources
    # Ids are the names of files in a folder, and folders have files of the same names.
    names = _apart([source.path for source in sources])
    return [
        source._replace(content=source.content.under(name)) if isinstance(source.content, Listing) else source
        for source, name in zip(sources, names, strict=True)
    ]


def _apart(paths: list[str]) -> list[str]:
    """Short names that tell paths, globs and addresses apart: what is after the folder that they share."""
    here = [path if is_remote(path) else os.path.abspath(path) for path in paths]
    shared = os.path.commonpath([os.path.dirname(path) for path in here if not is_remote(path)] or ["/"])
    names = [path if is_remote(path) else os.path.relpath(path, shared) for path in here]
    # A glob is known by the folders before its first wildcard.
    names = ["/".join(takewhile(lambda part: not glob.has_magic(part), name.split("/"))) for name in names]
    unique = all(names) and len(set(names)) == len(names)
    return names if unique else [f"{number}-{name}".strip("-") for number, name in enumerate(names, start=1)]


def _open(given: str | Path, options: Options) -> list[Source]:
    if is_remote(str(given)):
        return [_open_address(str(given), options)]
    path = Path(given).expanduser()
    if not os.path.exists(path) and glob.has_magic(str(given)):
        return _open_glob(str(path), options)
    if not os.path.exists(path):
        raise InputError(f"{given}: no such file or folder: give {KNOWN_SOURCES}")
    path = Path(os.path.abspath(path))
    form = _form_of(path)
    return [Source(form.name, str(path), form.read(path, options), form.inside)]


def _open_address(address: str, options: Options) -> Source:
    if hugging_face.is_hub_address(address):
        listing = hugging_face.list_hub(address, options.column)
        return Source("a Hugging Face dataset of the hub", address, listing, inside=True)
    return Source("skill-speech shards", address, open_shards(address, options.absolute_paths), inside=True)


def _open_glob(pattern: str, options: Options) -> list[Source]:
    paths = [Path(os.path.abspath(one)) for one in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise InputError(f"{pattern}: matches no file or folder: correct the pattern, and quote it for the shell")
    found: dict[int, tuple[Form, list[Path]]] = {}
    for path in paths:
        form = _form_of(path)
        found.setdefault(id(form), (form, []))[1].append(path)
    sources = []
    for form, members in found.values():
        if form.together is not None:
            sources.append(Source(form.name, pattern, form.together(members, pattern, options), form.inside))
        else:
            sources += [Source(form.name, str(path), form.read(path, options), form.inside) for path in members]
    return sources


def _form_of(path: Path) -> Form:
    """The form of a path that is there.

    Raises:
        InputError: it is of none that is read.
    """
    if not path.is_dir() and not is_regular(path):
        raise InputError(f"{path}: not a file or folder: give {KNOWN_SOURCES}")
    for refused in REFUSED:
        if refused.fits(path) and not (refused.name == "a JSON document" and rows.is_json_lines(path)):
            raise InputError(f"{path}: {refused.name} is not read: {refused.instead} ({PAGE})")
    for form in FOLDERS if path.is_dir() else FILES:
        if form.fits(path):
            return form
    raise InputError(f"{path}: unknown kind of data: give {KNOWN_SOURCES}")
