"""Transcribe a file and print each word with its time.

python examples/transcribe_file.py talk.mp3 kyutai/stt-1b-en_fr-candle
"""

import sys

import slipstream


def main(path: str, model: str = "tiny") -> None:
    with slipstream.load(model) as transcriber:
        transcript = transcriber.transcribe(path)
    for word in transcript.words:
        print(f"{word.start:7.2f} {word.end:7.2f} {word.confidence:5.2f}  {word.text}")
    print(f"\n{transcript.text}\n{transcript.duration:.1f} s, model {transcript.model}")


if __name__ == "__main__":
    main(*sys.argv[1:])
