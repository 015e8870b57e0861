#!/usr/bin/env bash
# From a fresh machine with a GPU to a compressed WavLM Base+ that can be published. From a checkout of this repository:
#
#     examples/rented_gpu.sh --dry-run     # print what would be done
#     examples/rented_gpu.sh               # do it; rerun the same command to resume
#
# Installs the pinned packages, downloads LibriSpeech, compresses the teacher with the published recipe, evaluates student and
# teacher, and packs student, exports, scores and report into one archive. Needs Linux, Python 3.11 or later, make, a C compiler,
# curl, and about 250 GB of disk (the corpus, and hidden states while heads are trained).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LIBRISPEECH_URL=${LIBRISPEECH_URL:-https://www.openslr.org/resources/12} # or a mirror of it
LEXICON_URL=${LEXICON_URL:-https://raw.githubusercontent.com/s3prl/s3prl/ec8064b5889f81ca460fbe2c094ce576a6f120b7/s3prl/downstream/ctc/lexicon}
LEXICONS=(librispeech-lexicon-200k-g2p.txt librispeech-lexicon-allothers-g2p.txt)

work=$HOME/skill-speech-run
recipe=$ROOT/recipes/wavlm-base-plus.yaml
train="train-clean-100 train-clean-360 train-other-500"
corpus=
tasks=pr,asr
heads=
install=true
dry=false

usage() {
  cat <<END
usage: examples/rented_gpu.sh [options] [-- SETTINGS OF skill-speech compress]

  --work DIR       folder for everything that is written (default: ~/skill-speech-run)
  --recipe FILE    settings of the run (default: recipes/wavlm-base-plus.yaml)
  --train SUBSETS  LibriSpeech's subsets to learn from (default: "$train")
  --corpus DIR     LibriSpeech that is already on this machine, instead of downloading it
  --tasks LIST     tasks to evaluate: pr, asr, "pr,asr" or "none" (default: $tasks)
  --heads FILE     settings of the evaluation (default: SUPERB's protocol, which takes long)
  --no-install     use the skill-speech on PATH
  --dry-run        print the commands without running them

For example, eight hours on whatever GPU this is:  examples/rented_gpu.sh -- --minutes 480
END
}

while (($#)); do
  case $1 in
    --work | --recipe | --train | --corpus | --tasks | --heads)
      (($# > 1)) || { echo "rented_gpu.sh: $1 needs a value; see --help" >&2; exit 2; }
      name=${1#--}
      printf -v "$name" %s "$2"
      shift 2
      ;;
    --no-install) install=false; shift ;;
    --dry-run) dry=true; shift ;;
    --help | -h) usage; exit ;;
    --) shift; break ;;
    *) echo "rented_gpu.sh: unknown option $1; see --help" >&2; exit 2 ;;
  esac
done
settings=("$@")
data=${corpus:-$work/LibriSpeech}
cuts=$work/cuts.jsonl.gz
run=$work/run
publish=$work/publish

say() { printf '\n== %s\n' "$*"; }

# Show a command, and run it unless this is a dry run.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  $dry || "$@"
}

# What a step writes says that it is done: it is not done again.
is_done() {
  [[ -e $1 ]] || return 1
  echo "already done: $1"
}

install_packages() {
  say "1. Install the pinned packages"
  $install || { echo "skipped: using $(command -v skill-speech || echo 'the skill-speech on PATH')"; return; }
  run make -C "$ROOT" setup "VENV=$work/venv"
  PATH=$work/venv/bin:$PATH
}

fetch_subset() {
  local name=$1.tar.gz
  is_done "$work/$1.done" && return
  # A download that was interrupted is continued; a server refuses to continue one that is complete.
  is_whole "$name" || run curl --location --fail --retry 10 --continue-at - --output "$work/$name" "$LIBRISPEECH_URL/$name"
  echo "+ check $work/$name against md5sum.txt"
  if ! $dry && ! is_whole "$name"; then
    rm -f "$work/$name"
    echo "rented_gpu.sh: $name is damaged: rerun to download it again" >&2
    exit 1
  fi
  run tar -xzf "$work/$name" -C "$work"
  run touch "$work/$1.done"
  run rm -f "$work/$name"
}

is_whole() {
  [[ -f $work/$1 ]] && (cd "$work" && grep " $1\$" md5sum.txt | md5sum --check --status -)
}

fetch_corpus() {
  say "2. Fetch LibriSpeech"
  if [[ -n $corpus ]]; then
    echo "skipped: using $corpus"
    return
  fi
  [[ -s $work/md5sum.txt ]] || run curl --location --fail --retry 10 --output "$work/md5sum.txt" "$LIBRISPEECH_URL/md5sum.txt"
  local subset lexicon wanted=$train
  [[ $tasks == none ]] || wanted+=" train-clean-100 dev-clean test-clean"
  for subset in $(tr ' ' '\n' <<<"$wanted" | sort -u); do
    fetch_subset "$subset"
  done
  [[ ,$tasks, == *,pr,* ]] || return 0
  for lexicon in "${LEXICONS[@]}"; do # s3prl's, which phoneme recognition needs
    is_done "$data/$lexicon" && continue
    run curl --location --fail --retry 10 --output "$data/$lexicon.part" "$LEXICON_URL/$lexicon"
    run mv "$data/$lexicon.part" "$data/$lexicon"
  done
}

# The recipe makes an update of four batches: one, two or four devices share them evenly.
devices() {
  local count
  count=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || count=0
  if ((count >= 4)); then echo 4; elif ((count >= 2)); then echo 2; else echo 1; fi
}

compress() {
  say "3. Compress"
  local subset folders=()
  for subset in $train; do folders+=("$data/$subset"); done
  is_done "$cuts" || run skill-speech prepare "${folders[@]}" --output "$cuts"
  run skill-speech compress --config "$recipe" --data "$cuts" --absolute_paths true --output "$run" \
    --devices "$(devices)" "${settings[@]}"
}

evaluate() {
  say "4. Evaluate"
  [[ $tasks != none ]] || { echo "skipped"; return; }
  local source=$recipe teacher
  [[ ! -f $run/config.yaml ]] || source=$run/config.yaml # where the teacher may be another one than the recipe's
  teacher=$(sed -n 's/^teacher: *//p' "$source")
  run skill-speech evaluate "teacher=$teacher" "student=$run/model" --data "$data" --tasks "$tasks" \
    ${heads:+--config "$heads"} --output "$run/evaluation"
  run skill-speech report "$run"
}

pack() {
  say "5. Pack what to publish"
  is_done "$publish/transformers" ||
    run skill-speech export "$run/model" --format transformers --output "$publish/transformers"
  is_done "$publish/onnx" ||
    run skill-speech export "$run/model" --format onnx --hidden_states last --output "$publish/onnx"
  run cp "$run/report.html" "$run/config.yaml" "$run/result.json" "$publish/"
  if [[ -d $run/evaluation || $dry == true && $tasks != none ]]; then
    echo "+ copy the scores to $publish/evaluation"
    $dry || copy_scores
  fi
  run tar -czf "$publish.tar.gz.part" -C "$work" publish
  run mv "$publish.tar.gz.part" "$publish.tar.gz"
  echo
  echo "Everything to publish: $publish.tar.gz"
  echo "To upload the model:   skill-speech export $run/model --format transformers --output NEW_FOLDER --push_to_hub YOU/NAME"
}

# Without the cache of hidden states and the heads' checkpoints.
copy_scores() {
  mkdir -p "$publish/evaluation"
  find "$run/evaluation" -maxdepth 1 -type f -exec cp {} "$publish/evaluation/" \;
}

run mkdir -p "$work" "$publish"
install_packages
fetch_corpus
compress
evaluate
pack
