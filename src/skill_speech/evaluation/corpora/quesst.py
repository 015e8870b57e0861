"""QUESST 2014 (MediaEval 2014, speech.fit.vutbr.cz): qbe, spoken queries in spoken documents.

As in s3prl only the utterances in English are searched. The scoring that SUPERB reports (score-TWV-Cnxe.sh with a
default score) nevertheless counts the queries of all languages, which a system that ignores them misses: hence the
complete lists in `extra`.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .lines import Line, index, read_lines
from .task_data import TaskData
from .utterances import Utterance, make_cuts, require_some

ENGLISH = "nnenglish"
DOCUMENTS = "language_key_utterances.lst"
SETS = {"dev": "dev", "test": "eval"}
"""Our names of the two sets of queries, and the corpus'."""

KEY_FORM = "DATABASE/FOLDER/FILE.wav LANGUAGE"
MATCH_FORM = "LEXEME DOCUMENT CHANNEL START DURATION QUERY …"
NO_QUERY = "NO_KEYWORD"

LAYOUT = (
    f"QUESST 2014: Audio/, dev_queries/, eval_queries/ and scoring/ with {DOCUMENTS}, language_key_dev.lst, "
    "language_key_eval.lst and groundtruth_quesst14_dev/quesst14_dev.rttm, groundtruth_quesst14_eval/quesst14_eval.rttm"
)


def is_quesst(folder: Path) -> bool:
    """Whether a folder has the layout."""
    folders = [folder / "Audio", *(folder / f"{name}_queries" for name in SETS.values())]
    files = [folder / "scoring" / DOCUMENTS, *(_key(folder, name) for name in SETS.values())]
    return all(path.is_dir() for path in folders) and all(path.is_file() for path in files)


def read_queries(folder: Path) -> TaskData:
    """qbe: splits queries_dev, queries_test and the documents that both are searched in, in English.

    `extra` holds, for all languages, "documents" (ids), "queries" (split to ids) and "matches" (split to the set of
    (query id, document id) where the document contains the query).
    """
    documents = _listed(folder, folder / "scoring" / DOCUMENTS)
    queries = {split: _listed(folder, _key(folder, name)) for split, name in SETS.items()}
    lists = {"documents": documents, **{f"queries_{split}": listed for split, listed in queries.items()}}
    matches = {
        split: _matches(_ground_truth(folder, name), set(queries[split]), set(documents))
        for split, name in SETS.items()
    }
    return TaskData(
        "qbe",
        {split: make_cuts(_in_english(listed, folder)) for split, listed in lists.items()},
        extra={
            "documents": list(documents),
            "queries": {split: list(listed) for split, listed in queries.items()},
            "matches": matches,
        },
    )


def _key(folder: Path, name: str) -> Path:
    return folder / "scoring" / f"language_key_{name}.lst"


def _ground_truth(folder: Path, name: str) -> Path:
    return folder / "scoring" / f"groundtruth_quesst14_{name}" / f"quesst14_{name}.rttm"


def _listed(folder: Path, path: Path) -> dict[str, Utterance]:
    """Id to utterance; the paths of the list start with a folder that stands for the database's own."""
    listed = {}
    for line in index(read_lines(path), lambda line: line.text.split()[0]).values():
        name, language = line.fields(KEY_FORM)
        _, _, below = name.partition("/")
        if not below:
            raise line.malformed(KEY_FORM)
        audio = folder / below
        listed[audio.stem] = Utterance(audio.stem, audio, line, custom={"language": language})
    return listed


def _in_english(listed: dict[str, Utterance], folder: Path) -> list[Utterance]:
    english = (utterance for utterance in listed.values() if utterance.custom["language"] == ENGLISH)
    return require_some(english, folder / "scoring", f"utterances in {ENGLISH}")


def _matches(path: Path, queries: set[str], documents: set[str]) -> set[tuple[str, str]]:
    matches = set()
    for line in read_lines(path):
        fields = line.text.split()
        if fields[0] != "LEXEME":
            continue
        if len(fields) < len(MATCH_FORM.split()) - 1:
            raise line.malformed(MATCH_FORM)
        document, query = fields[1], fields[5]
        if query == NO_QUERY:
            continue
        _require_known(line, "query", query, queries)
        _require_known(line, "document", document, documents)
        matches.add((query, document))
    return matches


def _require_known(line: Line, what: str, name: str, known: set[str]) -> None:
    if name not in known:
        raise InputError(f"{line}: the {what} {name} is in no language_key list: restore the corpus' own files")
