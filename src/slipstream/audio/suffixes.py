"""File name suffixes of audio, for the search of a folder."""

from __future__ import annotations

import functools

# fmt: off
# Demuxers of images, subtitles, playlists and video without sound whose codec has another name, and of headerless
# samples, whose rate a file does not state.
_WITHOUT_AUDIO = frozenset({
    "alaw", "aqtitle", "avs2", "avs3", "cavsvideo", "cdg", "evc", "ffmetadata", "filmstrip", "hls", "hxvs", "ico",
    "ifv", "image2", "ingenient", "ivf", "jpegxl_anim", "lrc", "mcc", "mjpeg_2000", "mpjpeg", "mpsub", "mulaw", "nc",
    "obu", "s16le", "s8", "scc", "ser", "sup", "tty", "u16le", "u8", "vc1test", "vobsub", "webm_dash_manifest",
    "yuv4mpegpipe",
})
# Suffixes that mostly name something else: images, source code, archives, data.
_OTHERWISE_USED = frozenset({
    "avif", "bit", "dat", "heic", "heif", "ism", "mca", "mj2", "mjpg", "mks", "mods", "pcm", "psp", "sdx", "son", "str",
    "sub", "svs", "tun", "vb",
})
# Suffixes that FFmpeg reads by content, although no demuxer names them.
_READ_BY_CONTENT = frozenset({
    "3gpp", "adts", "awb", "bwf", "dff", "divx", "dsf", "f4a", "iff", "latm", "m2p", "m4r", "m4v", "mp1",
    "mpga", "oga", "ogv", "ogx", "opus", "qt", "rf64", "rmvb", "snd", "spx", "tod", "tp", "trp", "vob", "wave", "weba",
})
# fmt: on


@functools.cache
def audio_suffixes() -> frozenset[str]:
    """Return the suffixes, such as `.mp3`, of audio and video that this FFmpeg can read."""
    import av

    suffixes = set(_READ_BY_CONTENT)
    for name in av.formats_available - _WITHOUT_AUDIO:
        format = av.format.ContainerFormat(name)
        if format.is_input and (name == "flv" or not _is_other_codec(name)):  # "flv" is a codec, too
            suffixes |= format.extensions - _OTHERWISE_USED
    return frozenset(f".{suffix}" for suffix in suffixes)


def _is_other_codec(name: str) -> bool:
    """Return whether a demuxer reads a video or subtitle codec of the same name."""
    import av

    try:
        return av.Codec(name, "r").type != "audio"
    except ValueError:
        return False
