// Built by "npm run build" from packages/js/src/recorder.ts: edit that file. 9d54b74aee968ca7feb3dc82b83bf4222a011e488fc5fe0300f008f328dd9b1c
// The microphone as a source of audio for a client.
import { SlipstreamError } from "./errors.js";
import { Emitter } from "./events.js";
const TAIL_MS = 100; // what was spoken just before `stop` is still in the browser's buffers
const END_MS = 500; // the audio thread of a context that was suspended does not answer
/**
 * Records the microphone with an AudioWorklet. Iterate over it for its audio, or pass it to a client's `transcribe`.
 *
 * Needs a page that was loaded over HTTPS or from localhost.
 */
export class Recorder extends Emitter {
    live = true;
    #options;
    #context;
    #recorded = 0;
    #starting = null;
    #stopping = null;
    #track = null;
    #capture = null;
    #ended;
    #end = new Promise((resolve) => (this.#ended = resolve));
    constructor(options = {}) {
        super();
        this.#options = options;
        if (typeof AudioContext === "undefined")
            throw new SlipstreamError("Recorder needs a browser with AudioContext");
        this.#context = new AudioContext(options.sampleRate ? { sampleRate: options.sampleRate } : {});
    }
    /** Sample rate of the audio, in Hz. */
    get sampleRate() {
        return this.#context.sampleRate;
    }
    /** Seconds recorded so far. */
    get duration() {
        return this.#recorded / this.sampleRate;
    }
    /** Ask for the microphone and start recording. Throws a `SlipstreamError` whose `cause` is the browser's error. */
    start() {
        return (this.#starting ??= this.#start());
    }
    /** Stop recording, after the last samples were emitted. */
    stop() {
        return (this.#stopping ??= this.#stop());
    }
    /** Yield the audio from now on until `stop`. Starts the recorder, and stops it when the iteration ends early. */
    async *[Symbol.asyncIterator]() {
        const queue = [];
        let wake = () => { };
        let ended = false;
        const remove = this.on("samples", (samples) => (queue.push(samples), wake()));
        void this.#end.then(() => ((ended = true), wake()));
        try {
            await this.start();
            for (;;) {
                while (queue.length)
                    yield queue.shift();
                if (ended)
                    return;
                await new Promise((resolve) => (wake = resolve));
            }
        }
        finally {
            remove();
            await this.stop();
        }
    }
    async #start() {
        if (this.#stopping)
            throw new SlipstreamError("the recorder was stopped: create a new one");
        if (!navigator.mediaDevices || typeof AudioWorkletNode === "undefined") {
            throw new SlipstreamError("browsers allow the microphone only to pages over HTTPS or from localhost");
        }
        const { deviceId, processing = false, workletUrl = new URL("./capture.js", import.meta.url) } = this.#options;
        const audio = {
            channelCount: 1,
            echoCancellation: processing,
            noiseSuppression: processing,
            autoGainControl: processing,
            ...(deviceId && { deviceId: { exact: deviceId } }),
        };
        const input = await navigator.mediaDevices.getUserMedia({ audio }).catch((cause) => {
            throw new SlipstreamError(`the microphone cannot be opened: ${cause}`, { cause });
        });
        const track = (this.#track = input.getAudioTracks()[0]);
        if (this.#stopping)
            return track.stop();
        try {
            void this.#context.resume(); // Safari starts it suspended
            await this.#context.audioWorklet.addModule(workletUrl);
            if (this.#stopping)
                return track.stop();
            const capture = (this.#capture = new AudioWorkletNode(this.#context, "slipstream-capture", { numberOfOutputs: 0 }));
            capture.port.onmessage = ({ data }) => {
                if (data === null)
                    return this.#ended();
                this.#recorded += data.length;
                this.emit("samples", data);
            };
            this.#context.createMediaStreamSource(input).connect(capture);
            track.onended = () => this.emit("disconnected", undefined);
        }
        catch (cause) {
            track.stop();
            throw new SlipstreamError(`the audio of the microphone cannot be read: ${cause}`, { cause });
        }
    }
    async #stop() {
        if (this.#capture && this.#track) {
            if (this.#track.readyState === "live")
                await sleep(TAIL_MS);
            this.#track.stop();
            this.#capture.port.postMessage("end");
            await Promise.race([this.#end, sleep(END_MS)]);
        }
        this.#ended();
        await this.#context.close();
    }
}
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
