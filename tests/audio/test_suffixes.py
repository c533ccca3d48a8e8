"""Suffixes of audio: what this FFmpeg writes and reads is found, and nothing else."""

from __future__ import annotations

from slipstream.audio import audio_suffixes

READABLE = """
    3g2 3gp 3gpp aac ac3 adts aif aifc aiff amr ape asf au avi caf divx dts eac3 f4a f4v flac flv gsm gxf latm m2p m2t
    m2ts m4a m4b m4r m4v mk3d mka mkv mlp mmf mov mp1 mp2 mp3 mp4 mpa mpeg mpg mpga mts mxf nut oga ogg ogv ogx opus qt
    ra rf64 rm rmvb sf snd sox spx swf tod tp trp ts tta vob voc w64 wav wave weba webm wma wmv wtv wv
"""


def test_a_suffix_that_ffmpeg_reads_is_audio() -> None:
    assert {f".{suffix}" for suffix in READABLE.split()} <= audio_suffixes()


def test_text_images_subtitles_and_raw_samples_are_not() -> None:
    others = "txt srt vtt ass sub idx xml json js vb v nfo jpg png gif webp avif heic m3u8 h264 y4m pcm raw al ul"
    assert not {f".{suffix}" for suffix in others.split()} & audio_suffixes()
