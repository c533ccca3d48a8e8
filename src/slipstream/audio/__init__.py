"""Audio input: files, raw PCM, arrays or the microphone, as a stream of mono frames at the model's rate.

FFmpeg's libraries (through PyAV) decode files piece by piece, so that an hour takes no more memory than a second.
soxr resamples them; its output does not depend on how the stream is cut.
Shapes: C channels, S samples, T frames. Samples are float32, full scale is 1.
"""

from slipstream.audio.arrays import to_float
from slipstream.audio.channels import Channels
from slipstream.audio.convert import Converter
from slipstream.audio.devices import InputDevice, input_devices, microphone
from slipstream.audio.files import AudioInfo, decode, load, probe
from slipstream.audio.pcm import Encoding, PcmDecoder, RawFormat
from slipstream.audio.resample import Framer, Resampler
from slipstream.audio.samples import FRAME_SAMPLES, SAMPLE_RATE
from slipstream.audio.source import Source
from slipstream.audio.suffixes import audio_suffixes

__all__ = [
    "FRAME_SAMPLES",
    "SAMPLE_RATE",
    "AudioInfo",
    "Channels",
    "Converter",
    "Encoding",
    "Framer",
    "InputDevice",
    "PcmDecoder",
    "RawFormat",
    "Resampler",
    "Source",
    "audio_suffixes",
    "decode",
    "input_devices",
    "load",
    "microphone",
    "probe",
    "to_float",
]
