"""A voice agent: `OPENAI_API_KEY=... python examples/voice_agent.py https://api.openai.com/v1 gpt-4o-mini tiny`."""

import json
import os
import sys
from urllib.request import Request, urlopen

import slipstream.audio


def ask(url, model, messages):
    body = json.dumps({"model": model, "messages": messages, "stream": True}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get('OPENAI_API_KEY')}"}
    with urlopen(Request(f"{url}/chat/completions", body, headers)) as lines:
        for line in lines:
            choices = json.loads(line.removeprefix(b"data: "))["choices"] if line.startswith(b"data: {") else []
            yield from (choice["delta"].get("content") or "" for choice in choices)


def converse(chunks, transcriber, speaker, play, url, model):
    words, answer, messages = [], None, [{"role": "system", "content": "Answer in one short spoken sentence."}]
    for event in transcriber.stream(chunks, 24_000, options=slipstream.SessionOptions(low_latency=True)):
        if isinstance(event, slipstream.PartialWord | slipstream.Word) and answer:  # the user interrupts
            messages.append({"role": "assistant", "content": answer.stop()})
            answer = None
        if isinstance(event, slipstream.Word):
            words.append(event.text)
        elif isinstance(event, slipstream.Turn) and words:
            messages.append({"role": "user", "content": " ".join(words)})
            words, answer = [], speaker.play(ask(url, model, list(messages)), play)
    if answer:
        answer.wait()


if __name__ == "__main__":
    from sounddevice import OutputStream as Output

    with slipstream.load(sys.argv[3], beam=1) as stt, slipstream.load_speaker() as tts, Output(24_000, channels=1) as o:
        converse(slipstream.audio.microphone(), stt, tts, lambda frame: o.write(frame[:, None]), *sys.argv[1:3])
