// Where audio comes from. A source is { name, sampleRate, duration, audio, stop() }; `audio` is what a client transcribes.

import { Problem, problemOfMicrophone } from "./problems.js";
import { Recorder } from "./slipstream/index.js";

const FILE_RATE = 24_000; // the model's own rate
const FILE_BYTES = 512 << 20; // the browser decodes a file in memory
const PIECE = FILE_RATE / 10;

// Open the microphone. Calls `onLevel` with the peak of each 20 ms, 0 to 1, and `onLost` if it is unplugged.
export async function openMicrophone(onLevel, onLost) {
  const recorder = new Recorder();
  recorder.on("samples", (samples) => {
    onLevel(samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0) / 32768);
  });
  recorder.on("disconnected", onLost);
  await recorder.start().catch((error) => {
    recorder.stop();
    throw problemOfMicrophone(error);
  });
  return {
    name: "",
    audio: recorder,
    sampleRate: recorder.sampleRate,
    get duration() {
      return recorder.duration;
    },
    stop: () => recorder.stop(),
  };
}

// Decode a file or blob.
export async function openFile(file) {
  if (file.size > FILE_BYTES) {
    throw new Problem(`${file.name} is too large for the browser. Use “slipstream transcribe” for files over 512 MB.`);
  }
  const sound = await decode(file).catch((error) => {
    throw new Problem(`${file.name} is not audio that this browser can read. Try MP3, WAV, M4A, FLAC or Ogg.`, {
      detail: String(error),
    });
  });
  const samples = mono(sound);
  let stopped = false;
  function* pieces() {
    for (let start = 0; start < samples.length && !stopped; start += PIECE) yield samples.subarray(start, start + PIECE);
  }
  const { name } = file;
  return { name, audio: pieces(), sampleRate: FILE_RATE, duration: sound.duration, stop: async () => (stopped = true) };
}

async function decode(file) {
  return await new OfflineAudioContext(1, 1, FILE_RATE).decodeAudioData(await file.arrayBuffer());
}

// The mean of all channels; the loudest channel where the others nearly cancel it, as in opposite phase.
function mono(sound) {
  const channels = Array.from({ length: sound.numberOfChannels }, (_, index) => sound.getChannelData(index));
  const mean = channels[0].map((_, index) => channels.reduce((sum, channel) => sum + channel[index], 0) / channels.length);
  const energy = (samples) => samples.reduce((sum, sample) => sum + sample * sample, 0);
  const loudest = channels.reduce((best, channel) => (energy(channel) > energy(best) ? channel : best));
  return energy(mean) < 0.1 * energy(loudest) ? loudest : mean;
}
