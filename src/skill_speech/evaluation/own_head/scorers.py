"""What a head's outputs are compared with, and by which measures: one class for each kind of head.

Legend of the suffixes: B utterances of a batch, N utterances, T frames, V outputs, D features or sums, R resamples, U
units that are resampled, P trials.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ...checkpoints.tokenizers import Tokenizer
from ...data import SAMPLE_RATE
from ...errors import InputError
from ...heads import HeadOutput, SpeechModel
from ..metrics import character_edits, word_edits
from ..metrics.bootstrap import Scored, Sums, Trials, Values
from .references import NO_LABEL, Labels, numbers, speakers, texts

MOST_TRIALS = 100_000

Array = NDArray[np.float64]
Said = tuple["Scorer", Mapping[str, Any]]
"""What a model said, and what that is compared with."""


@dataclass
class Scorer(ABC):
    """References of some cuts for one model, and what its outputs are worth beside them.

    Args:
        model: with a head.
        cuts: all of them.
        data, source: names of the data and the model, for messages.
    """

    model: SpeechModel
    cuts: Sequence[Cut]
    data: str
    source: str
    references: dict[str, Any] = field(init=False)
    """Id → what is right; cuts of which that is not known are not in it."""

    units = "utterances"
    """What is resampled."""
    missing = "label"
    """What a cut lacks that has no reference."""

    def __post_init__(self) -> None:
        assert self.model.head is not None
        self.head, self.by_id = self.model.head.config, {cut.id: cut for cut in self.cuts}
        self.references = self.find_references()

    @abstractmethod
    def find_references(self) -> dict[str, Any]:
        """Id → what is right.

        Raises:
            InputError: it is not known of any cut, or is nothing that the model could say.
        """

    @abstractmethod
    def predict(self, made: HeadOutput, ids: Sequence[str]) -> list[Any]:
        """What the head says of the utterances of a batch, as JSON has it."""

    @abstractmethod
    def scored(self, predictions: Mapping[str, Any], seed: int) -> Scored:
        """The measures of what the head said, by the ids of utterances.

        Raises:
            InputError: they cannot be scored.
        """

    def by_label(self, predictions: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Label → its measures, where there are labels."""
        return {}

    def items(self, ids: Sequence[str], seed: int) -> dict[str, int]:
        """How many things of which kinds were scored."""
        return {}

    def notes(self, ids: Sequence[str]) -> list[str]:
        """What a reader has to know."""
        return []

    def shown(self, value: Any) -> str:
        """A reference or a prediction, in a table of all utterances."""
        return str(value)

    def rows(self, said: Mapping[str, Any], teacher: Said | None, seed: int) -> Iterator[list[str]]:
        """A table of all utterances, its heading first: id, reference, and what the model and the teacher say.

        Args:
            said: by the model, whose scorer this is.
            teacher: its scorer, and what it said of the same utterances; None for none.
            seed: of the trials, where there are too many.
        """
        yield ["id", "reference", *_heads("{}", teacher)]
        for name, mine in said.items():
            theirs = [] if teacher is None else [teacher[0].shown(teacher[1][name])]
            yield [name, self.shown(self.references[name]), self.shown(mine), *theirs]


class Transcripts(Scorer):
    """CTC: greedy decoding, word and character error rates."""

    missing = "text"

    def find_references(self) -> dict[str, Any]:
        """Texts as the model's vocabulary can write them."""
        self.tokenizer = Tokenizer(self.model.files, self.head, self.source)
        self.said = texts(self.cuts)
        if not self.said:
            raise InputError(
                f"{self.data}: none of its {len(self.cuts)} cuts has a text: give a manifest whose supervisions have "
                "one, or a folder in LibriSpeech's layout"
            )
        found = {name: self.tokenizer.normalize(text) for name, text in self.said.items()}
        if not any(found.values()):
            first = next(iter(self.said.values()))
            raise InputError(
                f"{self.data}: none of its text can be written in the vocabulary of {self.source} (first: "
                f"{first[:40]!r}): one of them is of another language or script"
            )
        return found

    def predict(self, made: HeadOutput, ids: Sequence[str]) -> list[Any]:
        """Texts."""
        best_BT, frames = made.logits.argmax(-1).cpu(), _frames(made)
        return [self.tokenizer.decode(best_T[:count].tolist()) for best_T, count in zip(best_BT, frames, strict=True)]

    def scored(self, predictions: Mapping[str, Any], seed: int) -> Scored:
        """WER and CER."""
        pair = [self.references[name] for name in predictions], list(predictions.values())
        parts_ND = np.hstack([word_edits(*pair), character_edits(*pair)]).astype(np.float64)

        def measures(sums_RD: Array, count_R: Array) -> Values:
            return {"wer": 100 * sums_RD[:, 0] / sums_RD[:, 1], "cer": 100 * sums_RD[:, 2] / sums_RD[:, 3]}

        return Sums(parts_ND, measures)

    def items(self, ids: Sequence[str], seed: int) -> dict[str, int]:
        """Words and characters of the references."""
        kept = [self.references[name] for name in ids]
        return {"words": sum(len(text.split()) for text in kept), "characters": sum(map(len, kept))}

    def notes(self, ids: Sequence[str]) -> list[str]:
        """How texts were made comparable."""
        letters = sum(letter.isalnum() for name in ids for letter in self.said[name])
        kept = sum(letter.isalnum() for name in ids for letter in self.references[name])
        lost = max(0, letters - kept)
        note = "Greedy decoding, no language model; references in the letters of the model's vocabulary"
        return [f"{note}, which lacks {lost:,} of their {letters:,}." if lost else f"{note}."]


class Classes(Scorer):
    """One label for an utterance: accuracy and macro F1."""

    def find_references(self) -> dict[str, Any]:
        """Numbers of the outputs."""
        self.labels = Labels(self.cuts, self.head, self.data, self.source)
        found = {cut.id: self.labels.one_of(cut) for cut in self.cuts}
        return {name: number for name, number in found.items() if number is not None}

    def predict(self, made: HeadOutput, ids: Sequence[str]) -> list[Any]:
        """Numbers of the outputs."""
        return list(made.logits.argmax(-1).tolist())

    def scored(self, predictions: Mapping[str, Any], seed: int) -> Scored:
        """Accuracy and F1."""
        return Sums(self._counts(predictions), _classified)

    def by_label(self, predictions: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """F1 of every label that was right or was said."""
        return _by_label(self.labels.names, self._counts(predictions), len(predictions))

    def notes(self, ids: Sequence[str]) -> list[str]:
        """Where the labels are from."""
        return [_macro(self.labels)]

    def shown(self, value: Any) -> str:
        """The label."""
        return self.labels.shown([value])

    def _counts(self, predictions: Mapping[str, Any]) -> Any:
        right_N = np.array([self.references[name] for name in predictions])
        said_N = np.array(list(predictions.values()))
        N, V = len(said_N), len(self.labels.names)
        hit_N = right_N == said_N
        # Columns: hits, alarms, misses of each label.
        columns = np.concatenate([np.where(hit_N, said_N, V + said_N), (2 * V + right_N)[~hit_N]])
        rows = np.concatenate([np.arange(N), np.flatnonzero(~hit_N)])
        return csr_array((np.ones(len(rows)), (rows, columns)), shape=(N, 3 * V))


class ManyLabels(Classes):
    """Any number of labels for an utterance: their F1 and accuracy, and the means over labels."""

    def find_references(self) -> dict[str, Any]:
        """Whether each label holds, as (V,)."""
        self.labels = Labels(self.cuts, self.head, self.data, self.source)
        found = {cut.id: self.labels.several_of(cut) for cut in self.cuts}
        return {name: found_V for name, found_V in found.items() if found_V is not None}

    def predict(self, made: HeadOutput, ids: Sequence[str]) -> list[Any]:
        """Numbers of the outputs whose probability is above one half."""
        return [np.flatnonzero(logits_V > 0).tolist() for logits_V in made.logits.float().cpu().numpy()]

    def scored(self, predictions: Mapping[str, Any], seed: int) -> Scored:
        """Accuracy and F1, means over labels."""
        return Sums(self._counts(predictions), _many_labels)

    def by_label(self, predictions: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """F1 and accuracy."""
        return _by_label(self.labels.names, self._counts(predictions), len(predictions), accuracy=True)

    def shown(self, value: Any) -> str:
        """The labels."""
        return self.labels.shown(np.flatnonzero(value).tolist() if isinstance(value, np.ndarray) else value)

    def _counts(self, predictions: Mapping[str, Any]) -> Any:
        right_NV = np.stack([self.references[name] for name in predictions])
        said_NV = np.zeros_like(right_NV)
        for said_V, found in zip(said_NV, predictions.values(), strict=True):
            said_V[found] = True
        parts = (right_NV & said_NV, ~right_NV & said_NV, right_NV & ~said_NV)
        return csr_array(np.hstack(parts).astype(np.float64))


class Regression(Scorer):
    """Numbers for an utterance: mean absolute error and concordance correlation coefficient (Lin 1989)."""

    def find_references(self) -> dict[str, Any]:
        """Numbers."""
        return numbers(self.cuts, self.head, self.data)

    def predict(self, made: HeadOutput, ids: Sequence[str]) -> list[Any]:
        """Numbers."""
        return list(made.logits.float().tolist())

    def scored(self, predictions: Mapping[str, Any], seed: int) -> Scored:
        """MAE and CCC, means over the outputs."""
        V = self.head.outputs

        def measures(sums_RD: Array, count_R: Array) -> Values:
            found = [_concordance(sums_RD[:, number::V], count_R) for number in range(V)]
            return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}

        return Sums(self._parts(predictions), measures)

    def by_label(self, predictions: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """MAE and CCC of every output, where there are several."""
        if self.head.outputs == 1:
            return {}
        sums_1D, count = self._parts(predictions).sum(0, keepdims=True), np.array([float(len(predictions))])
        names = self.head.labels or tuple(map(str, range(self.head.outputs)))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {
                name: _concordance(sums_1D[:, number :: self.head.outputs], count) for number, name in enumerate(names)
            }
        return {name: {measure: float(value[0]) for measure, value in one.items()} for name, one in found.items()}

    def shown(self, value: Any) -> str:
        """Numbers."""
        return ", ".join(f"{one:.6g}" for one in value)

    def _parts(self, predictions: Mapping[str, Any]) -> Array:
        """Absolute errors, both numbers, their squares and their product; each of all outputs (N, 6 V)."""
        right_NV = np.array([self.references[name] for name in predictions])
        said_NV = np.array(list(predictions.values()), dtype=np.float64)
        # Measures do not depend on where zero is, and squares of large numbers cancel badly.
        zero_V = right_NV.mean(0)
        x_NV, y_NV = right_NV - zero_V, said_NV - zero_V
        return np.hstack([np.abs(x_NV - y_NV), x_NV, y_NV, x_NV**2, y_NV**2, x_NV * y_NV])


class Frames(Scorer):
    """Labels frame by frame: accuracy and macro F1 over frames.

    An utterance's prediction is what was counted of it: hits, alarms and misses of each label, and frames.
    """

    def find_references(self) -> dict[str, Any]:
        """True for every cut of which anything is said."""
        self.labels = Labels(self.cuts, self.head, self.data, self.source)
        self.seconds_per_frame = self.model.encoder.config.hop / SAMPLE_RATE
        self.many = self.head.problem == "multi-label"
        found = {cut.id: True for cut in self.cuts if self.labels.is_labeled(cut)}
        if not self.many:
            for name in found:  # two at a time are refused before anything is done
                self._right(name, round(self.by_id[name].duration / self.seconds_per_frame) + 1)
        return found

    def predict(self, made: HeadOutput, ids: Sequence[str]) -> list[Any]:
        """Counts."""
        return [
            self._count(name, logits_TV[:count].float().cpu().numpy())
            for name, logits_TV, count in zip(ids, made.logits, _frames(made), strict=True)
        ]

    def scored(self, predictions: Mapping[str, Any], seed: int) -> Scored:
        """Accuracy and F1."""
        parts_ND = csr_array(np.array(list(predictions.values()), dtype=np.float64))
        of_frames = _many_labels if self.many else _classified
        return Sums(parts_ND, lambda sums_RD, _: of_frames(sums_RD[:, :-1], sums_RD[:, -1]))

    def by_label(self, predictions: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """F1 of every label, and its accuracy where it stands for itself."""
        counts_ND = np.array(list(predictions.values()), dtype=np.float64)
        return _by_label(self.labels.names, counts_ND[:, :-1], counts_ND[:, -1].sum(), accuracy=self.many)

    def notes(self, ids: Sequence[str]) -> list[str]:
        """Where the labels are from, and which frames count."""
        where = "All frames count." if self.many else "Frames without a label do not count."
        return [f"{_macro(self.labels)} {where}"]

    def rows(self, said: Mapping[str, Any], teacher: Said | None, seed: int) -> Iterator[list[str]]:
        """Frames of every utterance, and decisions that are wrong."""
        yield ["id", "frames", *_heads("{} errors", teacher)]
        for name, mine in said.items():
            theirs = [] if teacher is None else [teacher[1][name]]
            yield [name, str(mine[-1]), *(str(self._errors(counts)) for counts in (mine, *theirs))]

    def _errors(self, counts: Sequence[int]) -> int:
        _, alarms, misses = np.split(np.array(counts[:-1]), 3)
        return int(misses.sum() + self.many * alarms.sum())  # of one label for each frame, an alarm is a miss, too

    def _right(self, name: str, frames: int) -> Any:
        labels, cut = self.labels, self.by_id[name]
        if self.many:
            return labels.several_in_time(cut, frames, self.seconds_per_frame)
        return labels.in_time(cut, frames, self.seconds_per_frame)

    def _count(self, name: str, logits_TV: NDArray[np.float32]) -> list[int]:
        right, outputs = self._right(name, len(logits_TV)), np.arange(logits_TV.shape[1])
        frames = len(logits_TV)
        if self.many:
            right_TV, said_TV = right, logits_TV > 0
        else:
            known_T = right != NO_LABEL
            right_TV, said_TV = (numbers_T[known_T][:, None] == outputs for numbers_T in (right, logits_TV.argmax(1)))
            frames = int(known_T.sum())
        parts = (right_TV & said_TV, ~right_TV & said_TV, right_TV & ~said_TV)
        return [*np.concatenate([part_TV.sum(0) for part_TV in parts]).tolist(), frames]


class SpeakerEmbeddings(Scorer):
    """x-vectors: the equal error rate of pairs of utterances, scored by the cosine of their embeddings."""

    units, missing = "speakers", "speaker"

    def find_references(self) -> dict[str, Any]:
        """Speakers."""
        found = speakers(self.cuts, self.data)
        if not found:
            raise InputError(
                f"{self.data}: none of its {len(self.cuts)} cuts has a speaker: give a manifest whose "
                "supervisions have one"
            )
        _need_pairs(list(found.values()), self.data)
        return found

    def predict(self, made: HeadOutput, ids: Sequence[str]) -> list[Any]:
        """Embeddings."""
        assert made.embeddings_BD is not None
        return list(made.embeddings_BD.float().tolist())

    def scored(self, predictions: Mapping[str, Any], seed: int) -> Scored:
        """The equal error rate of all trials, or of MOST_TRIALS of them."""
        names = list(predictions)
        known = [self.references[name] for name in names]
        _need_pairs(known, self.data)
        unique, speakers_N = np.unique(known, return_inverse=True)
        pairs_P2 = draw_pairs(speakers_N, MOST_TRIALS, seed)
        return Trials(len(unique), speakers_N[pairs_P2], self._cosines(predictions, pairs_P2))

    def items(self, ids: Sequence[str], seed: int) -> dict[str, int]:
        """Speakers, and trials of which kinds."""
        unique, speakers_N = np.unique([self.references[name] for name in ids], return_inverse=True)
        same_P = np.equal(*speakers_N[draw_pairs(speakers_N, MOST_TRIALS, seed)].T)
        return {"speakers": len(unique), "target trials": int(same_P.sum()), "other trials": int((~same_P).sum())}

    def notes(self, ids: Sequence[str]) -> list[str]:
        """What a trial is."""
        every = len(ids) * (len(ids) - 1) // 2
        if every <= MOST_TRIALS:
            return ["Trials are all pairs of utterances, scored by the cosine of their embeddings."]
        return [
            f"Trials are {MOST_TRIALS:,} drawn of {every:,} pairs of utterances, up to half of them of one speaker, "
            "scored by the cosine of their embeddings."
        ]

    def rows(self, said: Mapping[str, Any], teacher: Said | None, seed: int) -> Iterator[list[str]]:
        """Every trial with its scores."""
        yield ["one", "other", "same speaker", *_heads("{} cosine", teacher)]
        names = list(said)
        _, speakers_N = np.unique([self.references[name] for name in names], return_inverse=True)
        pairs_P2 = draw_pairs(speakers_N, MOST_TRIALS, seed)
        several = [said] if teacher is None else [said, teacher[1]]
        scores_PM = np.stack([self._cosines(one, pairs_P2) for one in several], axis=1)
        for (one, other), scores_M in zip(pairs_P2.tolist(), scores_PM.tolist(), strict=True):
            same = "yes" if speakers_N[one] == speakers_N[other] else "no"
            yield [names[one], names[other], same, *(f"{score:.6f}" for score in scores_M)]

    @staticmethod
    def _cosines(predictions: Mapping[str, Any], pairs_P2: NDArray[np.int64]) -> Array:
        x_ND = np.array(list(predictions.values()), dtype=np.float64)
        x_ND /= np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
        return np.einsum("pd,pd->p", x_ND[pairs_P2[:, 0]], x_ND[pairs_P2[:, 1]])


def make_scorer(model: SpeechModel, cuts: Sequence[Cut], data: str, source: str) -> Scorer:
    """The scorer of a model's kind of head.

    Raises:
        InputError: the manifest has nothing to score it by, or what the model could not say.
    """
    assert model.head is not None
    config = model.head.config
    if config.kind == "frame" and config.problem == "regression":
        raise InputError(f"{source}: frame-wise regression heads are not evaluated")
    name = config.problem if config.kind == "sequence" else config.kind
    return SCORERS[name](model, cuts, data, source)


SCORERS: dict[str, Callable[..., Scorer]] = {
    "ctc": Transcripts,
    "single-label": Classes,
    "multi-label": ManyLabels,
    "regression": Regression,
    "frame": Frames,
    "x-vector": SpeakerEmbeddings,
}
"""By the kind of head; classifiers of utterances by their problem."""


def draw_pairs(speakers_N: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Pairs of utterances (P, 2): all of them, or so many, of which up to half are of one speaker.

    The equal error rate does not depend on how many pairs of each kind there are, only its precision does.
    """
    N = len(speakers_N)
    every = N * (N - 1) // 2
    if every <= most:
        return np.stack(np.triu_indices(N, 1), axis=1)
    generator = np.random.default_rng(seed)
    order = np.argsort(speakers_N, kind="stable")
    counts = np.bincount(speakers_N)
    within = counts * (counts - 1) // 2
    drawn = generator.choice(int(within.sum()), min(most // 2, int(within.sum())), replace=False)
    which = np.searchsorted(np.cumsum(within), drawn, side="right")
    first = np.cumsum(counts) - counts
    targets_P2 = order[first[which][:, None] + _pair(drawn - (np.cumsum(within) - within)[which], counts[which])]
    # Nearly all pairs are of two speakers: what is drawn too much is left out.
    others_P2 = _pair(generator.choice(every, min(4 * most, every), replace=False), np.int64(N))
    others_P2 = others_P2[speakers_N[others_P2[:, 0]] != speakers_N[others_P2[:, 1]]]
    return np.concatenate([targets_P2, others_P2[: most - len(targets_P2)]])


def _pair(number_P: NDArray[np.int64], among: Any) -> NDArray[np.int64]:
    """The pair i < j < among that has a number: (0, 1), (0, 2), …, (1, 2), …"""
    # Counted from the last pair on, pairs (among - 1 - k, …) are numbers k (k - 1) / 2 and the next k - 1.
    back_P = among * (among - 1) // 2 - 1 - number_P
    k_P = ((1 + np.sqrt(8.0 * back_P + 1)) / 2).astype(np.int64)
    # The root of a large number may be off by one.
    k_P -= k_P * (k_P - 1) // 2 > back_P
    k_P += (k_P + 1) * k_P // 2 <= back_P
    return np.stack([among - 1 - k_P, among - 1 - (back_P - k_P * (k_P - 1) // 2)], axis=1)


def _heads(form: str, teacher: Said | None) -> list[str]:
    """Columns of a table: the model's, and the teacher's if there is one."""
    return [form.format("model"), *([] if teacher is None else [form.format("teacher")])]


def _need_pairs(known: Sequence[str], data: str) -> None:
    if len(set(known)) < 2 or len(set(known)) == len(known):
        raise InputError(
            f"{data}: {len(known)} utterances of {len(set(known))} speakers; an equal error rate needs two speakers, "
            "and two utterances of one"
        )


def _frames(made: HeadOutput) -> list[int]:
    assert made.lengths_B is not None
    return list(made.lengths_B.tolist())


def _classified(sums_RD: Array, count_R: Array) -> Values:
    """Accuracy and macro F1, of hits, alarms and misses of each label."""
    hits_RV, alarms_RV, misses_RV = np.split(sums_RD, 3, axis=1)
    return {"accuracy": 100 * hits_RV.sum(1) / count_R, "f1": _macro_f1(hits_RV, alarms_RV, misses_RV)}


def _many_labels(sums_RD: Array, count_R: Array) -> Values:
    """The same where each label stands for itself."""
    hits_RV, alarms_RV, misses_RV = np.split(sums_RD, 3, axis=1)
    accuracy_R = 100 * (1 - (alarms_RV + misses_RV).mean(1) / count_R)
    return {"accuracy": accuracy_R, "f1": _macro_f1(hits_RV, alarms_RV, misses_RV)}


def _macro_f1(hits_RV: Array, alarms_RV: Array, misses_RV: Array) -> Array:
    """The mean over the labels that are right or said somewhere."""
    whole_RV = 2 * hits_RV + alarms_RV + misses_RV
    found: Array = 100 * (2 * hits_RV / np.maximum(whole_RV, 1)).sum(1) / (whole_RV > 0).sum(1)
    return found


def _by_label(names: Sequence[str], counts_ND: Any, count: float, accuracy: bool = False) -> dict[str, Any]:
    hits_V, alarms_V, misses_V = np.split(np.asarray(counts_ND.sum(0)).ravel(), 3)
    found = {}
    for number, name in enumerate(names):
        hits, wrong = hits_V[number], alarms_V[number] + misses_V[number]
        if hits + wrong:
            found[name] = {"f1": float(100 * 2 * hits / (2 * hits + wrong))}
            found[name] |= {"accuracy": float(100 * (1 - wrong / count))} if accuracy else {}
            found[name]["items"] = int(hits + misses_V[number])
    return found


def _concordance(sums_RD: Array, count_R: Array) -> dict[str, Array]:
    """MAE and CCC of one output, from the sums of what `Regression` has of every utterance."""
    error_R, x_R, y_R, xx_R, yy_R, xy_R = (sums_RD / count_R[:, None]).T
    covariance_R = xy_R - x_R * y_R
    spread_R = xx_R - x_R**2 + yy_R - y_R**2 + (x_R - y_R) ** 2
    return {"mae": error_R, "ccc": 2 * covariance_R / spread_R}


def _macro(labels: Labels) -> str:
    source = 'custom["label"]' if labels.field == "label" else labels.field
    return f"Labels are the supervisions' {source}; F1 is the mean over labels."
