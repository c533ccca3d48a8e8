"""Turn taking for a voice agent: collect the words of a turn, and answer when the speaker has finished.

At each end of turn the engine flushes, so the last words arrive immediately instead of after the model's delay.
python examples/voice_agent.py call.wav kyutai/stt-1b-en_fr-candle
"""

import sys

import slipstream
from slipstream.audio import SAMPLE_RATE, decode


def answer(text: str) -> str:
    return f"I understood: {text}"  # call your language model here


def main(path: str, model: str = "tiny") -> None:
    options = slipstream.SessionOptions(low_latency=True, turns=slipstream.TurnOptions(end_above=0.6))
    chunks = (piece[0] for piece in decode(path))  # in an agent: the audio of the call
    words = []
    with slipstream.load(model) as transcriber:
        for event in transcriber.stream(chunks, SAMPLE_RATE, options=options):
            if isinstance(event, slipstream.Word):
                words.append(event.text)
            elif isinstance(event, slipstream.EndOfTurn):
                print(f"{event.time:6.2f} s: end of turn, prepare the answer")
            elif isinstance(event, slipstream.Turn):
                print(f"{event.start:6.2f} to {event.end:.2f} s: {answer(' '.join(words))}")
                words.clear()


if __name__ == "__main__":
    main(*sys.argv[1:])
