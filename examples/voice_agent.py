"""A voice agent: microphone, words, any OpenAI-compatible chat completions, speech. Speak to interrupt it.

OPENAI_API_KEY=... python examples/voice_agent.py https://api.openai.com/v1 gpt-4o-mini
"""

import contextlib
import json
import os
import sys
import threading
import urllib.request

import slipstream
from slipstream.audio import SAMPLE_RATE, microphone
from slipstream.engine.reading import Audio


def ask(url, model, messages):
    """Yield the answer of a language model as it is written."""
    body = json.dumps({"model": model, "messages": messages, "stream": True}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get('OPENAI_API_KEY')}"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/chat/completions", body, headers)) as lines:
        for line in lines:
            choices = json.loads(line.removeprefix(b"data: "))["choices"] if line.startswith(b"data: {") else []
            yield from (choice["delta"].get("content") or "" for choice in choices)


class Answer(threading.Thread):
    """Plays the speech of a text that another thread writes."""

    def __init__(self, session, pieces, play):
        super().__init__(daemon=True)
        self.session, self.pieces, self.play, self.words, self.seconds = session, pieces, play, [], 0.0
        threading.Thread(target=self.write, daemon=True).start()
        self.start()

    def write(self):
        with contextlib.suppress(slipstream.SessionClosed):  # interrupted
            for piece in self.pieces:
                self.session.feed(piece)
            self.session.end()

    def run(self):
        for event in self.session:
            if isinstance(event, Audio):
                self.play(event.samples)  # 80 ms; waits until the device has room for them
                self.seconds = event.start
            else:
                self.words.append(event)

    def stop(self):
        """Stop within a frame, and return the text that was spoken."""
        self.session.cancel()
        return " ".join(word.text for word in self.words if word.start <= self.seconds)


def converse(chunks, transcriber, speaker, play, url, model, voice=None):
    options = slipstream.SessionOptions(low_latency=True)  # the pause heads find ends of turn, and each flushes
    words, answer, messages = [], None, [{"role": "system", "content": "Answer in one short spoken sentence."}]
    for event in transcriber.stream(chunks, SAMPLE_RATE, options=options):
        if isinstance(event, slipstream.PartialWord | slipstream.Word) and answer:
            messages.append({"role": "assistant", "content": answer.stop()})
            answer = None
        if isinstance(event, slipstream.Word):
            words.append(event.text)
        elif isinstance(event, slipstream.Turn) and words:
            messages.append({"role": "user", "content": " ".join(words)})
            words.clear()
            answer = Answer(speaker.open(voice), ask(url, model, list(messages)), play)
    if answer:
        answer.join()


if __name__ == "__main__":
    from sounddevice import OutputStream as Output

    model = "kyutai/stt-1b-en_fr-candle"
    with slipstream.load(model) as stt, slipstream.load_speaker() as tts, Output(SAMPLE_RATE, channels=1) as out:
        converse(microphone(), stt, tts, lambda frame: out.write(frame[:, None]), *sys.argv[1:])
