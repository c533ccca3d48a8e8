"""Audio to codec tokens, and words to text tokens and back. Needs the extra `torch`.

python examples/tokens_and_codec.py talk.mp3 kyutai/stt-1b-en_fr
"""

import sys

import torch

import slipstream
from slipstream.audio import load
from slipstream.bundle import ModelBundle
from slipstream.model.text import WordDecoder, encode_stream
from slipstream.nn.build import build_codec


def main(path: str, model: str = "tiny") -> None:
    bundle = ModelBundle.resolve(model)
    codec = build_codec(bundle.config.codec, bundle.checkpoint().codec)
    samples = load(path)
    with torch.inference_mode():
        codes, _ = codec.encode(torch.from_numpy(samples)[None])  # [1, codebooks, frames]
        print(f"{len(samples) / 24_000:.2f} s are {codes.shape[2]} frames of {codes.shape[1]} codes")
        if bundle.config.codec.has_decoder:
            print("decoded:", codec.decode(codes)[0].shape)

    with slipstream.load(model) as transcriber:
        words = transcriber.transcribe(path).words
    tokens = encode_stream(words, bundle.tokenizer, bundle.config.delay_frames, codes.shape[2] + 50)
    decoder = WordDecoder(bundle.tokenizer, bundle.config.delay_frames, partials=False)
    events = [event for token in tokens[1:] for event in decoder.push(int(token))] + list(decoder.flush())
    print("tokens:", *tokens[:40], "...")
    print("words:", *(event.text for event in events if isinstance(event, slipstream.Word)))


if __name__ == "__main__":
    main(*sys.argv[1:])
