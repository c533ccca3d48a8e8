"""Write SubRip and WebVTT subtitles next to a video.

python examples/subtitles.py talk.mp4 kyutai/stt-1b-en_fr-candle
"""

import sys
from pathlib import Path

import slipstream


def main(path: str, model: str = "tiny") -> None:
    with slipstream.load(model) as transcriber:
        transcript = transcriber.transcribe(path)
    video = Path(path)
    video.with_suffix(".srt").write_text(transcript.to_srt(max_line_width=42, max_line_count=2), encoding="utf-8")
    video.with_suffix(".vtt").write_text(transcript.to_vtt(max_line_width=32, max_line_count=1), encoding="utf-8")
    print(f"{video.with_suffix('.srt')}, {video.with_suffix('.vtt')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
