// Where audio comes from. A source is { name, tape, stop(sentSamples) }; after `stop` its tape is ended.

import { Problem, problemOfMicrophone } from "./problems.js";
import { Tape } from "./tape.js";

const FILE_RATE = 24_000; // the model's own rate
const FILE_BYTES = 512 << 20; // the browser decodes a file in memory
const MICROPHONE_SECONDS = 120; // kept for the time after a lost connection
const TAIL_MS = 100; // what was said just before Stop is still in the browser's buffers
// What browsers do for telephony cuts word beginnings and gates soft speech.
const PLAIN_MICROPHONE = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Open the microphone. Calls `onLevel` with the peak of each 20 ms, 0 to 1, and `onLost` if it is unplugged.
export async function openMicrophone(onLevel, onLost) {
  if (!navigator.mediaDevices || !window.AudioWorkletNode) {
    throw new Problem("Browsers allow the microphone only over HTTPS or on localhost. You can still open a file.");
  }
  const input = await navigator.mediaDevices.getUserMedia({ audio: PLAIN_MICROPHONE }).catch((error) => {
    throw problemOfMicrophone(error);
  });
  const context = new AudioContext();
  context.resume(); // Safari starts it suspended
  await context.audioWorklet.addModule("capture.js");
  const tape = new Tape(context.sampleRate, MICROPHONE_SECONDS);
  const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  const flushed = new Promise((resolve) => {
    capture.port.onmessage = ({ data: samples }) => {
      if (samples === null) return resolve();
      tape.append(samples);
      onLevel(samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0) / 32768);
    };
  });
  context.createMediaStreamSource(input).connect(capture);
  const [track] = input.getAudioTracks();
  track.onended = onLost;

  let stopping = null;
  const end = async () => {
    if (track.readyState === "live") await sleep(TAIL_MS);
    track.stop();
    capture.port.postMessage("end");
    await Promise.race([flushed, sleep(500)]);
    tape.end();
    await context.close();
  };
  return { name: "", tape, stop: () => (stopping ??= end()) };
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
  const tape = new Tape(FILE_RATE);
  tape.append(mono16(sound));
  tape.end();
  return { name: file.name, tape, stop: async (sentSamples) => tape.end(sentSamples) };
}

async function decode(file) {
  return await new OfflineAudioContext(1, 1, FILE_RATE).decodeAudioData(await file.arrayBuffer());
}

// The mean of all channels; the loudest channel where the others nearly cancel it, as in opposite phase.
function mono16(sound) {
  const channels = Array.from({ length: sound.numberOfChannels }, (_, index) => sound.getChannelData(index));
  const mean = channels[0].map((_, index) => channels.reduce((sum, channel) => sum + channel[index], 0) / channels.length);
  const energy = (samples) => samples.reduce((sum, sample) => sum + sample * sample, 0);
  const loudest = channels.reduce((best, channel) => (energy(channel) > energy(best) ? channel : best));
  const mono = energy(mean) < 0.1 * energy(loudest) ? loudest : mean;
  return Int16Array.from(mono, (sample) => Math.max(-1, Math.min(1, sample)) * 32767);
}
