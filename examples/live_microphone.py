"""Transcribe the microphone, and print words as they are recognised. Needs the extra `mic`.

python examples/live_microphone.py kyutai/stt-1b-en_fr-candle
"""

import sys

import slipstream
from slipstream import audio


def main(model: str = "tiny") -> None:
    with slipstream.load(model, beam=1) as transcriber:
        print("Speak; Ctrl-C ends.")
        for event in transcriber.stream(audio.microphone(), sample_rate=audio.SAMPLE_RATE):
            if isinstance(event, slipstream.Word):
                print(event.text, end=" ", flush=True)
            elif isinstance(event, slipstream.EndOfTurn):
                print(flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
