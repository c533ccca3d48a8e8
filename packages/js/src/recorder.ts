// The microphone as a source of audio for a client.

import type { AudioSource } from "./client.js";
import { SlipstreamError } from "./errors.js";
import { Emitter } from "./events.js";

const TAIL_MS = 100; // what was spoken just before `stop` is still in the browser's buffers
const END_MS = 500; // the audio thread of a context that was suspended does not answer

export interface RecorderOptions {
  /** The microphone: a `deviceId` of `navigator.mediaDevices.enumerateDevices()`. By default the browser's choice. */
  deviceId?: string;
  /** In Hz, by default that of the device. Firefox cannot change it. */
  sampleRate?: number;
  /**
   * Use the browser's echo cancellation, noise suppression and gain control. They are off by default: they cut the
   * beginnings of words, and gate soft speech.
   */
  processing?: boolean;
  /** Address of the package's `capture.js`, if your bundler moves it. */
  workletUrl?: string | URL;
}

export interface RecorderEvents {
  /** 20 ms of mono audio. Do not change it. */
  samples: Int16Array;
  /** The microphone was disconnected. */
  disconnected: void;
}

/**
 * Records the microphone with an AudioWorklet. Iterate over it for its audio, or pass it to a client's `transcribe`.
 *
 * Needs a page that was loaded over HTTPS or from localhost.
 */
export class Recorder extends Emitter<RecorderEvents> implements AudioSource {
  readonly live = true;
  readonly #options: RecorderOptions;
  readonly #context: AudioContext;
  #recorded = 0;
  #starting: Promise<void> | null = null;
  #stopping: Promise<void> | null = null;
  #track: MediaStreamTrack | null = null;
  #capture: AudioWorkletNode | null = null;
  #ended!: () => void;
  readonly #end = new Promise<void>((resolve) => (this.#ended = resolve));

  constructor(options: RecorderOptions = {}) {
    super();
    this.#options = options;
    if (typeof AudioContext === "undefined") throw new SlipstreamError("Recorder needs a browser with AudioContext");
    this.#context = new AudioContext(options.sampleRate ? { sampleRate: options.sampleRate } : {});
  }

  /** Sample rate of the audio, in Hz. */
  get sampleRate(): number {
    return this.#context.sampleRate;
  }

  /** Seconds recorded so far. */
  get duration(): number {
    return this.#recorded / this.sampleRate;
  }

  /** Ask for the microphone and start recording. Throws a `SlipstreamError` whose `cause` is the browser's error. */
  start(): Promise<void> {
    return (this.#starting ??= this.#start());
  }

  /** Stop recording, after the last samples were emitted. */
  stop(): Promise<void> {
    return (this.#stopping ??= this.#stop());
  }

  /** Yield the audio from now on until `stop`. Starts the recorder, and stops it when the iteration ends early. */
  async *[Symbol.asyncIterator](): AsyncIterator<Int16Array, void, undefined> {
    const queue: Int16Array[] = [];
    let wake = () => {};
    let ended = false;
    const remove = this.on("samples", (samples) => (queue.push(samples), wake()));
    void this.#end.then(() => ((ended = true), wake()));
    try {
      await this.start();
      for (;;) {
        while (queue.length) yield queue.shift()!;
        if (ended) return;
        await new Promise<void>((resolve) => (wake = resolve));
      }
    } finally {
      remove();
      await this.stop();
    }
  }

  async #start(): Promise<void> {
    if (this.#stopping) throw new SlipstreamError("the recorder was stopped: create a new one");
    if (!navigator.mediaDevices || typeof AudioWorkletNode === "undefined") {
      throw new SlipstreamError("browsers allow the microphone only to pages over HTTPS or from localhost");
    }
    const { deviceId, processing = false, workletUrl = new URL("./capture.js", import.meta.url) } = this.#options;
    const audio: MediaTrackConstraints = {
      channelCount: 1,
      echoCancellation: processing,
      noiseSuppression: processing,
      autoGainControl: processing,
      ...(deviceId && { deviceId: { exact: deviceId } }),
    };
    const input = await navigator.mediaDevices.getUserMedia({ audio }).catch((cause: unknown) => {
      throw new SlipstreamError(`the microphone cannot be opened: ${cause}`, { cause });
    });
    const track = (this.#track = input.getAudioTracks()[0]!);
    if (this.#stopping) return track.stop();
    try {
      void this.#context.resume(); // Safari starts it suspended
      await this.#context.audioWorklet.addModule(workletUrl);
      if (this.#stopping) return track.stop();
      const capture = (this.#capture = new AudioWorkletNode(this.#context, "slipstream-capture", { numberOfOutputs: 0 }));
      capture.port.onmessage = ({ data }: MessageEvent<Int16Array | null>) => {
        if (data === null) return this.#ended();
        this.#recorded += data.length;
        this.emit("samples", data);
      };
      this.#context.createMediaStreamSource(input).connect(capture);
      track.onended = () => this.emit("disconnected", undefined);
    } catch (cause) {
      track.stop();
      throw new SlipstreamError(`the audio of the microphone cannot be read: ${cause}`, { cause });
    }
  }

  async #stop(): Promise<void> {
    if (this.#capture && this.#track) {
      if (this.#track.readyState === "live") await sleep(TAIL_MS);
      this.#track.stop();
      this.#capture.port.postMessage("end");
      await Promise.race([this.#end, sleep(END_MS)]);
    }
    this.#ended();
    await this.#context.close();
  }
}

const sleep = (milliseconds: number) => new Promise<void>((resolve) => setTimeout(resolve, milliseconds));
