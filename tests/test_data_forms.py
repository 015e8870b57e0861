"""Every form of data: each row of docs/data.md is carried out, and compared with what was written."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.kaldi import load_kaldi_data_dir
from lhotse.shar import SharWriter

from skill_speech import cli
from skill_speech.data import Part, fingerprint, hugging_face, load_waveform, open_cuts, prepare
from skill_speech.errors import InputError

RATE = 16_000
PAGE = Path(__file__).parents[1] / "docs/data.md"


def rows(mark: str) -> list[list[str]]:
    """The rows of the table after a mark of docs/data.md."""
    table = PAGE.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")[2].partition("<!-- end -->")[0]
    lines = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table.strip().splitlines()[2:]]
    return [[cell.strip() for cell in line] for line in lines]


class Known(NamedTuple):
    """What is known of a cut: id, samples, transcript, speaker, label."""

    id: str
    samples: int
    text: str | None = None
    speaker: str | None = None
    label: Any = None


def known(cuts: CutSet) -> list[Known]:
    found = []
    for cut in cuts:
        said = cut.supervisions[0] if cut.supervisions else None
        label = (said.custom or {}).get("label") if said else None
        found.append(Known(cut.id, cut.num_samples, said and said.text, said and said.speaker, label))
    return sorted(found)


def sound(number: int, seconds: float = 0.5) -> np.ndarray:
    return 0.1 * np.random.default_rng(number).standard_normal(round(seconds * RATE)).astype("float32")


def write(path: str | Path, number: int = 0, seconds: float = 0.5, format: str | None = None) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(number, seconds), RATE, format=format)
    return path


def encoded(number: int, seconds: float = 0.5) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, sound(number, seconds), RATE, format="FLAC")
    return stream.getvalue()


def folder() -> list[Known]:
    write("AUDIO/a.wav"), write("AUDIO/deep/b.flac", seconds=0.25)
    return [Known("a", 8_000), Known("deep/b", 4_000)]


def librispeech() -> list[Known]:
    write("LibriSpeech/dev-clean/84/121/84-121-0000.flac")
    Path("LibriSpeech/dev-clean/84/121/84-121.trans.txt").write_text("84-121-0000 GO ON\n")
    return [Known("84-121-0000", 8_000, "GO ON", "84")]


def several() -> list[Known]:
    folder()
    write("b.wav")
    Path("list.txt").write_text("b.wav\n")
    return [Known("AUDIO/a", 8_000), Known("AUDIO/deep/b", 4_000), Known("list.txt/b", 8_000)]


def globbed() -> list[Known]:
    write("corpora/x/wav/a.wav"), write("corpora/y/wav/a.wav", seconds=0.25), write("corpora/y/other/b.wav")
    return [Known("x/wav/a", 8_000), Known("y/wav/a", 4_000)]


def audio_file() -> list[Known]:
    write("talk.flac")
    return [Known("talk", 8_000)]


def text_of_paths() -> list[Known]:
    write("x/a.wav"), write("b.wav")
    Path("list.txt").write_bytes(b"\xef\xbb\xbfx/a.wav\r\n\r\nb.wav\r\n")
    return [Known("b", 8_000), Known("x/a", 8_000)]


def table() -> list[Known]:
    write("wavs/a.wav"), write("wavs/b.wav")
    with Path("train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "wav", "Transcript", "spk_id", "emotion"])
        writer.writerows(
            [["u1", "wavs/a.wav", 'He said "no", twice\nand left', "s1", "sad"], ["u2", "wavs/b.wav", "", "", ""]]
        )
    return [Known("u1", 8_000, 'He said "no", twice\nand left', "s1", "sad"), Known("u2", 8_000, "")]


def other_column() -> list[Known]:
    write("a.wav")
    Path("takes.csv").write_text("take;said by;text\na.wav;x;HELLO\n")
    return [Known("a", 8_000, "HELLO")]


def common_voice() -> list[Known]:
    write("cv-corpus/de/clips/common_voice_de_1.mp3")
    header = "client_id\tpath\tsentence\tup_votes\tgender\tlocale\tsegment"
    Path("cv-corpus/de/train.tsv").write_text(
        f'{header}\nabc\tcommon_voice_de_1.mp3\t"Nein, sagte er.\t2\tmale\tde\t\n'
    )
    return [Known("common_voice_de_1", 8_000, '"Nein, sagte er.', "abc")]


def nemo() -> list[Known]:
    write("a.wav", seconds=2.0)
    lines = [
        {"audio_filepath": "a.wav", "offset": 0.5, "duration": 0.75, "text": "one", "label": ["x", "y"]},
        {"audio_filepath": "a.wav", "duration": 2.0001, "text": "all", "speaker": 7},
    ]
    Path("manifest.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [Known("a", 32_000, "all", "7"), Known("a-0.5", 12_000, "one", None, ["x", "y"])]


def fairseq() -> list[Known]:
    write("audio/x/a.wav")
    Path("train.tsv").write_bytes(b"\xef\xbb\xbfaudio\r\nx/a.wav\t8000\r\n")
    return [Known("x/a", 8_000)]


def kaldi() -> list[Known]:
    wav = write("audio/rec1.wav", seconds=3.0)
    Path("data/train").mkdir(parents=True)
    files = {
        "wav.scp": f"rec1 {wav.absolute()}\n",
        "segments": "s1-u1 rec1 0.5 1.25\ns1-u2 rec1 2.0 -1\n",
        "text": "s1-u1 GUTEN TAG\ns1-u2\n",
        "utt2spk": "s1-u1 s1\ns1-u2 s1\n",
        "spk2gender": "s1 f\n",
    }
    for name, content in files.items():
        Path("data/train", name).write_text(content)
    return [Known("s1-u1", 12_000, "GUTEN TAG", "s1"), Known("s1-u2", 16_000, "", "s1")]


def lhotse_cuts() -> CutSet:
    cuts = []
    for number in range(3):
        cut = Recording.from_file(write(f"audio/{number}.flac", number)).to_cut()
        said = {"text": f"TEXT {number}", "speaker": "s", "custom": {"label": number}}
        cut.supervisions = [SupervisionSegment(cut.id, cut.recording_id, 0, cut.duration, **said)]
        cuts.append(cut)
    return CutSet.from_cuts(cuts)


LHOTSE = [Known(str(number), 8_000, f"TEXT {number}", "s", number) for number in range(3)]


def manifest() -> list[Known]:
    lhotse_cuts().to_file("theirs.jsonl.gz")
    return LHOTSE


def shar() -> list[Known]:
    Path("SHAR").mkdir()
    with SharWriter("SHAR", fields={"recording": "flac"}, shard_size=2) as writer:
        for cut in lhotse_cuts():
            writer.write(cut)
    return LHOTSE


def shards() -> list[Known]:
    manifest()
    prepare("theirs.jsonl.gz", "OLD", shards=True)
    return LHOTSE


def tars() -> list[Known]:
    Path("tars").mkdir()
    number = 0
    for shard in range(2):
        with tarfile.open(f"tars/train-{shard}.tar", "w") as tar:
            for _ in range(2):
                fields = {"speaker": f"s{number}", "duration": 99, "path": "elsewhere"}
                files = {"flac": encoded(number), "txt": f"text {number}\n".encode(), "cls": str(number).encode()}
                for extension, content in (files | {"json": json.dumps(fields).encode()}).items():
                    info = tarfile.TarInfo(f"./x/{number:03}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                number += 1
    return [Known(f"x/{number:03}", 8_000, f"text {number}", f"s{number}", str(number)) for number in range(4)]


def dataset() -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = [{"bytes": encoded(number), "path": f"{number}.flac"} for number in range(3)]
    columns = {"id": ["a", "b", "c"], "text": ["x", "y", "z"], "label": [0, 1, 1], "audio": rows}
    made = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))
    return made.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))


HUGGING_FACE = [
    Known("a", 8_000, "x", None, "no"),
    Known("b", 8_000, "y", None, "yes"),
    Known("c", 8_000, "z", None, "yes"),
]


def saved() -> list[Known]:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": dataset(), "test": dataset()}).save_to_disk("DATASET")
    return HUGGING_FACE


def parquet(where: str) -> Callable[[], list[Known]]:
    def make() -> list[Known]:
        Path(where).mkdir(parents=True)
        for number in range(3):
            dataset().select([number]).to_parquet(f"{where}/train-{number:05}-of-00003.parquet")
        return HUGGING_FACE

    return make


def hub() -> list[Known]:
    """A folder in the place of the hub: `datasets` reads it as it would read that."""
    datasets = pytest.importorskip("datasets")
    parquet("HUB/data")()
    dataset().to_parquet("HUB/data/test-00000-of-00001.parquet")

    def load(name: str, config: str | None, revision: str | None) -> Any:
        assert (name, config, revision) == ("OWNER/NAME", None, None)
        return datasets.load_dataset("HUB", streaming=True)

    hugging_face.load = load
    return HUGGING_FACE


MAKERS: dict[str, Callable[[], list[Known]]] = {
    "a folder of audio": folder,
    "LibriSpeech": librispeech,
    "several": several,
    "a glob": globbed,
    "an audio file": audio_file,
    "a text of paths": text_of_paths,
    "a table with a header": table,
    "a table with another column": other_column,
    "a split of Common Voice": common_voice,
    "JSON lines that name audio": nemo,
    "a fairseq tsv": fairseq,
    "a Kaldi directory": kaldi,
    "a lhotse manifest": manifest,
    "lhotse Shar": shar,
    "skill-speech shards": shards,
    "a WebDataset tar file": tars,
    "a folder of WebDataset tar files": tars,
    "a Hugging Face dataset on disk": saved,
    "a Parquet file": parquet("data"),
    "a folder of Parquet files": parquet("CORPUS/data"),
    "a Hugging Face dataset of the hub": hub,
}
SAID = {
    "several": "a text of paths",
    "a glob": "a folder of audio",
    "a table with another column": "a table with a header",
}
"""What is printed for rows that are no forms of their own."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hugging_face, "load", hugging_face.load)
    return tmp_path


def test_every_row_has_a_test() -> None:
    assert [row[0] for row in rows("forms")] == list(MAKERS)
    assert [row[0] for row in rows("refused")] == list(REFUSALS)


@pytest.mark.parametrize("row", rows("forms"), ids=lambda row: row[0])
def test_a_row_of_the_table(here: Path, row: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, _, command = row
    expected = MAKERS[name]()
    program, *words = shlex.split(command.strip("`"))
    assert (program, words[0]) == ("skill-speech", "prepare")
    capsys.readouterr()
    assert cli.main(words) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert SAID.get(name, name) in printed
    output = words[words.index("--output") + 1]
    made = list(open_cuts(output, absolute_paths=True, labels=True))
    assert known(CutSet(made)) == expected
    # --data takes the same, and audio is what was written.
    sources = words[1 : next(number for number, word in enumerate(words) if number and word.startswith("--"))]
    column = words[words.index("--column") + 1] if "--column" in words else None
    data = [Part(sources[0], column=column)] if column else sources
    given = open_cuts(data, absolute_paths="--absolute_paths" in words, labels=True)
    assert known(given) == expected
    assert fingerprint(given) == fingerprint(given)
    by_id = {cut.id: cut for cut in given}
    for cut in made:
        np.testing.assert_allclose(load_waveform(cut), load_waveform(by_id[cut.id]), atol=1e-4)
        assert np.abs(load_waveform(cut)).max() > 0.1


def pickled() -> str:
    Path("x.pkl").write_bytes(b"\x80\x04N.")
    return "x.pkl"


def common_voice_folder() -> str:
    common_voice()
    return "cv-corpus/de"


def kaldi_file() -> str:
    kaldi()
    return "data/train/wav.scp"


def archive() -> str:
    Path("a.zip").write_bytes(b"PK\x03\x04")
    return "a.zip"


def document() -> str:
    Path("a.json").write_text('[\n {"path": "a.wav"}\n]\n')
    return "a.json"


def spreadsheet() -> str:
    Path("a.xlsx").write_bytes(b"PK\x03\x04")
    return "a.xlsx"


REFUSALS: dict[str, Callable[[], str]] = {
    "a Common Voice folder": common_voice_folder,
    "a file of a Kaldi directory": kaldi_file,
    "a packed archive": archive,
    "a JSON document": document,
    "a spreadsheet": spreadsheet,
    "a pickle": pickled,
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_form_names_its_row(here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", REFUSALS[name](), "--output", "cuts.jsonl"]) == 2
    line = " ".join(capsys.readouterr().err.split())  # the terminal breaks it
    assert f"{name} is not read: " in line
    assert "docs/data.md" in line
    assert not Path("cuts.jsonl").exists()


@pytest.mark.parametrize("segments", [True, False])
def test_a_kaldi_directory_is_what_lhotse_reads(here: Path, segments: bool) -> None:
    Path("k").mkdir()
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "text", "utt2spk", "utt2lang")}
    for number in range(12):
        path = write(f"audio/{number}.wav", number, seconds=4.0)
        recording = f"s{number % 3}-rec{number:02}"
        lines["wav.scp"].append(f"{recording} {path.absolute()}")
        for part in range(3) if segments else [None]:
            utterance = recording if part is None else f"{recording}-{part}"
            if part is not None:
                start = round(float(rng.uniform(0, 1.0)), 3)
                lines["segments"].append(f"{utterance} {recording} {part + start} {part + 1 if part < 2 else -1}")
            lines["text"].append(f"{utterance} WORD {number}")
            lines["utt2spk"].append(f"{utterance} s{number % 3}")
            lines["utt2lang"].append(f"{utterance} de")
    for name, content in lines.items():
        if name != "segments" or segments:
            # Not all in the same order, as Kaldi wants them but not everybody has them.
            content = content if name != "text" else content[::-1]
            Path("k", name).write_text("\n".join(content) + "\n")
    recordings, supervisions, _ = load_kaldi_data_dir("k", RATE)
    theirs = CutSet.from_manifests(recordings=recordings, supervisions=supervisions).trim_to_supervisions()
    expected = {cut.supervisions[0].id: cut for cut in theirs}
    ours = {cut.id: cut for cut in open_cuts("k", absolute_paths=True)}
    assert ours.keys() == expected.keys()
    for name, cut in ours.items():
        (said,), (other,) = cut.supervisions, expected[name].supervisions
        assert (said.text, said.speaker, said.language) == (other.text, other.speaker, other.language)
        assert cut.duration == pytest.approx(expected[name].duration, abs=1 / RATE)
        np.testing.assert_allclose(load_waveform(cut), expected[name].load_audio()[0][: cut.num_samples], atol=1e-6)


def test_shar_is_what_lhotse_reads(here: Path) -> None:
    shar()
    theirs = {cut.id: cut.load_audio()[0] for cut in CutSet.from_shar(in_dir="SHAR")}
    ours = {cut.id: load_waveform(cut) for cut in open_cuts("SHAR")}
    assert theirs.keys() == ours.keys()
    for name, waveform_T in ours.items():
        np.testing.assert_array_equal(waveform_T, theirs[name])


def test_tar_files_are_what_webdataset_writes(here: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter("a.tar") as writer:
        for number in range(3):
            row = {"__key__": f"k{number}", "flac": encoded(number), "txt": f"t {number}", "json": {"speaker": "s"}}
            writer.write(row)
    assert known(open_cuts("a.tar")) == [Known(f"k{number}", 8_000, f"t {number}", "s") for number in range(3)]


def refused(data: Any, match: str, **options: Any) -> None:
    for opened in (open_cuts, prepare):
        with pytest.raises(InputError, match=match) as caught:
            list(opened(data, **options))
        assert str(caught.value).isprintable()


def test_commands_of_kaldi_are_named_and_never_run(here: Path) -> None:
    write("k/a.wav")
    Path("k/wav.scp").write_text("a a.wav\nb touch RAN; cat a.wav |\n")
    refused("k", r"wav\.scp: line 2: b is the output of a command, which is never run")
    Path("k/wav.scp").write_text("a a.ark:17\n")
    refused("k", r"wav\.scp: line 1: a is in a Kaldi archive")
    assert not Path("RAN").exists()
    Path("k/wav.scp").write_text("a a.wav\n")
    for line, match in [
        ("u a 0", "line 1 is not"),
        ("u b 0 1", "b is no recording"),
        ("u a 0.4 0.3", "ends at 0.3 s, before"),
        ("u a x 1", "the start is 'x'; it must be a number of seconds"),
        ("u a 0 inf", "the end is 'inf'; it must be"),
    ]:
        Path("k/segments").write_text(f"{line}\n")
        refused("k", match)
    Path("k/segments").write_text("u a 0 9\n")
    with pytest.raises(InputError, match=r"1 of 1 files cannot be used.*lasts 0\.500 s, u is said to end at 9\.000 s"):
        prepare("k")
    Path("k/wav.scp").rename("k/feats.scp")
    refused("k", "a Kaldi directory of features, without wav.scp")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("a,b\nx,y\n", r"no column is called path, audio, .*\(found a, b\): give --column"),
        ("path,text\na.wav,one, two\n", "line 2 has 3 fields, the header 2: quote text that has ','"),
        ("path,text\na.wav\n", "line 2 has 1 fields, the header 2"),
        ('path,text\na.wav,"open\n' + "x\n" * 100_000, "is a quotation mark open"),
        ("path,duration\na.wav,long\n", "line 2: duration is 'long'; it must be a number of seconds"),
        ("path,duration\na.wav,nan\n", "line 2: duration is 'nan'; it must be"),
        ("path,start,end\na.wav,2,1\n", "would end where it starts"),
        ("path,text\n,hello\n", "line 2 names no file"),
        ("path,text\nhttps://x/a.wav,hello\n", "names https://x/a.wav, an address"),
        ("path,text\n../../b.wav,hello\n", "outside its corpus"),
        ("path,text\n", "contains no audio files"),
        ("path,text\na.wav,\0\n", "line 2 has a NUL character"),
    ],
)
def test_tables_that_are_refused(here: Path, content: str, match: str) -> None:
    write("t/a.wav")
    Path("t/t.csv").write_text(content)
    refused("t/t.csv", match)


def test_a_column_without_a_name_says_nothing(here: Path) -> None:
    """As the index that pandas writes."""
    write("a.wav"), write("b.wav")
    Path("t.csv").write_text(",path\n5,a.wav\n6,b.wav\n")
    assert known(open_cuts("t.csv")) == [Known("a", 8_000), Known("b", 8_000)]


def test_other_texts_that_are_refused(here: Path) -> None:
    write("a.wav")
    Path("a.csv").write_bytes("path,text\na.wav,Grüße\n".encode("latin-1"))
    refused("a.csv", r"a\.csv: cannot be read as UTF-8 text, at or after line 2")
    Path("a.json").write_text('{"audio_filepath": "a.wav"}\n{"audio_filepath": 3}\n')
    refused("a.json", r"line 2: audio_filepath is 3; it must be a path")
    Path("a.json").write_text('{"audio_filepath": "a.wav"}\n{"audio\n')
    refused("a.json", r"a\.json: line 2 is not a JSON object")
    Path("a.json").write_text('{"audio_filepath": "a.wav", "text": ["x"]}\n')
    refused("a.json", r"line 1: text is \['x'\]; it must be text")
    refused("*.nothing", "matches no file or folder")
    refused([], "the list of data is empty")
    Path("cuts.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    assert [cut.id for cut in open_cuts("cuts.jsonl")] == ["a"]
    prepare("a.wav", "own.jsonl")
    with pytest.raises(InputError, match="has no column x: choose one of"):
        open_cuts([Part("a.json", column="x")])


def test_tar_files_that_are_refused(here: Path) -> None:
    tars()
    with tarfile.open("pickles.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.data"), io.BytesIO())
    refused("pickles.tar", r"no audio in this tar file \(found data: pickles are never read\)")
    content = Path("tars/train-0.tar").read_bytes()
    Path("cut.tar").write_bytes(content[: content.index(b"./x/001.flac") + 1_000])
    refused("cut.tar", r"cut\.tar: (truncated within|cannot be read as a tar file)")
    with pytest.raises(InputError, match="copy it with --shards"):
        prepare("tars", "cuts.jsonl")
    shar()
    Path("SHAR/recording.000001.tar").unlink()
    refused("SHAR", r"recording\.000001\.tar: no such file")


def test_damaged_arrow_files_are_refused(here: Path) -> None:
    """In a process of its own: offsets that lead anywhere in memory would end it."""
    saved()
    (path,) = Path("DATASET/train").glob("*.arrow")
    content = path.read_bytes()
    offsets = np.array([0, 1, 2, 3], dtype=np.int32).tobytes()  # of ids or texts, which have a letter each
    assert content.count(offsets) >= 2
    path.write_bytes(content.replace(offsets, np.array([0, 1, 1 << 30, 3], dtype=np.int32).tobytes()))
    script = "from skill_speech import cli; raise SystemExit(cli.main(['prepare', 'DATASET/train']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be read as an Arrow file" in " ".join(done.stderr.split())
    path.write_bytes(content[: len(content) // 2])
    refused("DATASET/train", "cannot be read as an Arrow file")
    path.unlink()
    refused("DATASET/train", "no such file, or a pipe")
    parquet("CORPUS")()
    Path("CORPUS/train-00001-of-00003.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet: cannot be read as a Parquet file"):
        list(open_cuts("CORPUS"))


def test_an_audio_file_of_a_glob_has_the_id_of_its_place(here: Path) -> None:
    write("x/a.wav"), write("y/a.wav"), write("y/a.flac")
    assert [cut.id for cut in open_cuts("*/a.*")] == ["x/a.wav", "y/a.flac", "y/a.wav"]


def test_a_plain_list_takes_each_cut_once_and_parts_are_mixed(here: Path) -> None:
    write("x/a.wav"), write("y/b.wav"), write("y/c.wav")
    assert sorted(cut.id for cut in open_cuts(["x", "y"])) == ["x/a", "y/b", "y/c"]
    mixed = sorted(cut.id for cut in open_cuts([str(here / "x"), "y", "y/c*.wav"]))
    assert mixed == ["1-x/a", "2-y/b", "2-y/c", "3-y/c"], "a folder and a glob of the same place"
    drawn = [cut.id for cut in open_cuts([Part("x", 1), Part("y", 1)])]
    assert {"a", "b", "c"} == set(drawn)


def test_a_fairseq_root_below_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    write("speech/a.wav")
    Path("x.tsv").write_text("~/speech\na.wav\t8000\n")
    assert known(open_cuts("x.tsv")) == [Known("a", 8_000)]
