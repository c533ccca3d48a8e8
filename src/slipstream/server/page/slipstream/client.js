// Built by "npm run build" from packages/js/src/client.ts: edit that file. 3e4707915859eb26001f5973853f05aaf458c1d3cef0fe66c19c2252c807ac7f
// A stream on a Slipstream server, over as many connections as it takes.
import { CLOSE, converse } from "./connection.js";
import { Continuity } from "./continuity.js";
import { errorOfClose, errorOfStatus, SlipstreamError } from "./errors.js";
import { Deferred, Emitter } from "./events.js";
import { encode, sampleBytes } from "./samples.js";
import { Tape } from "./tape.js";
const REWIND_SECONDS = 1; // before the model's delay: a word may have begun there
const AHEAD_SECONDS = 1; // `send` waits while more than this is not sent
const LONGEST_WAIT_SECONDS = 10;
const LEAST_KEPT_SECONDS = 10;
/**
 * Transcribes live audio on a Slipstream server. Iterate over it for its events, or register listeners with `on`.
 *
 * It connects when it is first used. A connection that is lost is opened again. If the server still holds the stream, it
 * continues there; otherwise the audio without final text is sent again, after some seconds of context. Times continue.
 */
export class SlipstreamClient extends Emitter {
    #url;
    #apiKey;
    #model;
    #hints;
    #encoding;
    #rate;
    #channels;
    #frameBytes;
    #kept;
    #retries;
    #tape;
    #abort = new AbortController();
    #outcome = new Deferred();
    #flushes = new Map();
    #iterations = new Set();
    #changed = new Deferred();
    #state = "new";
    #closing = false;
    #closed = false; // on the current connection
    #failures = 0;
    #base = 0; // where in the audio the current connection began, in seconds
    #sent = 0; // frames
    #settled = 0; // the text of the audio up to here is final
    #session = ""; // what the server may hold for the next connection
    #received = 0; // messages of the session, as the server counts them
    #continuity = new Continuity();
    #flushSent = 0; // the last flush of the current connection
    #flushId = 0;
    #openWord = null;
    #transcript = { text: "", words: [], turns: [], duration: 0, model: "", delay: 0 };
    constructor(options) {
        super();
        if (typeof WebSocket === "undefined")
            throw new SlipstreamError("SlipstreamClient needs WebSocket: Node 22 or later");
        this.#url = addressOf(options.url);
        this.#apiKey = options.apiKey ?? "";
        this.#model = options.model ?? "";
        this.#hints = [
            ...(options.keywords ?? []).map((word) => ["keyword", word]),
            ...(options.languages ?? []).map((language) => ["language", language]),
            ...(options.prompt ? [["prompt", options.prompt]] : []),
            ...(options.delay === undefined ? [] : [["delay", String(options.delay)]]),
            ...((options.alternatives ?? 1) > 1 ? [["alternatives", String(options.alternatives)]] : []),
        ];
        this.#encoding = options.encoding ?? "pcm_s16le";
        this.#rate = whole("sampleRate", options.sampleRate ?? 24_000, 4000, 768_000);
        this.#channels = whole("channels", options.channels ?? 1, 1, 8);
        this.#frameBytes = sampleBytes(this.#encoding) * this.#channels;
        this.#kept = number("keepSeconds", options.keepSeconds ?? 120, LEAST_KEPT_SECONDS) * this.#rate;
        this.#retries = number("retries", options.retries ?? 8, 0);
        this.#tape = new Tape(this.#frameBytes);
    }
    /** Seconds of audio given to `send`. */
    get duration() {
        return this.#tape.length / this.#rate;
    }
    /** Seconds of audio sent to the server. */
    get sentDuration() {
        return this.#sent / this.#rate;
    }
    /** Connect now, instead of with the first call of another method. */
    open() {
        if (this.#state !== "new")
            return;
        this.#state = "running";
        this.#run().then(() => this.#finish(), (error) => this.#fail(error));
    }
    /**
     * Add audio. Wait for the promise where the source can wait, so that audio is added no faster than it is sent.
     * If it cannot, ignore the promise: audio is kept for `keepSeconds`, and `lost` reports what was dropped.
     *
     * Throws a `TypeError` or `RangeError` for invalid audio; rejects once the stream has failed.
     */
    send(samples) {
        const bytes = encode(samples, this.#encoding);
        if (bytes.length % this.#frameBytes) {
            throw new RangeError(`${bytes.length} bytes: expected whole frames of ${this.#frameBytes} bytes`);
        }
        if (this.#closing)
            throw new SlipstreamError("the stream was closed: create a new client");
        this.open();
        this.#tape.append(bytes.slice());
        this.#tape.dropBefore(this.#tape.length - this.#kept);
        this.#notify();
        const room = this.#room();
        room.catch(() => { });
        return room;
    }
    /** Get the text of all audio so far without waiting for the model's delay. Resolves when it has arrived. */
    flush() {
        if (this.#closing)
            throw new SlipstreamError("the stream was closed: create a new client");
        this.open();
        const reached = new Deferred();
        if (this.#state === "over")
            this.#outcome.promise.catch(reached.reject);
        else
            this.#flushes.set(++this.#flushId, { position: this.#tape.length, reached });
        this.#notify();
        return reached.promise;
    }
    /** End the audio, and return the transcript once all text has arrived. */
    close() {
        this.open();
        if (this.#state !== "over")
            this.#closing = true;
        this.#notify();
        return this.#outcome.promise;
    }
    /** End the stream immediately, without the remaining text. What is waited for is rejected. */
    abort() {
        this.#fail(new SlipstreamError("the stream was aborted"));
    }
    /** Send all audio of a source, then close. Returns the transcript. */
    async transcribe(source) {
        this.open();
        const isLive = "live" in source && source.live === true;
        const pump = async () => {
            for await (const samples of source) {
                if (this.#closing || this.#state === "over")
                    return;
                const room = this.send(samples);
                if (!isLive)
                    await room;
            }
        };
        pump().then(() => void this.close(), (error) => this.#fail(error));
        return this.#outcome.promise;
    }
    /** Yield the events from now on, up to the last word. Throws the error of a stream that fails. */
    async *[Symbol.asyncIterator]() {
        const queue = this.#state === "over" ? [null] : [];
        let wake = () => { };
        const take = (event) => (queue.push(event), wake());
        this.#iterations.add(take);
        this.open();
        try {
            for (;;) {
                while (queue.length) {
                    const event = queue.shift();
                    if (event === null)
                        return void (await this.#outcome.promise);
                    yield event;
                }
                await new Promise((resolve) => (wake = resolve));
            }
        }
        finally {
            this.#iterations.delete(take);
        }
    }
    // ------------------------------------------------------------------------------------------------------ connections
    async #run() {
        while (this.#state === "running") {
            const end = await converse(this.#address(), this.#link);
            if (end.done || this.#state !== "running")
                return;
            const error = end.opened ? errorOfClose(end.code ?? 1006, end.reason) : await this.#refusal();
            if (!error.retry || this.#failures >= Math.min(error.tries, this.#retries))
                throw error;
            if (this.#isIdle()) {
                while (this.#isIdle())
                    await this.#changed.promise; // the server ends idle streams; do not take a slot again
                continue;
            }
            const seconds = waitSeconds(this.#failures++);
            this.#tell({ type: "reconnecting", error, seconds });
            await pause(seconds, this.#abort.signal);
        }
    }
    #address() {
        const address = new URL("v1/stream", this.#url);
        address.protocol = address.protocol.replace("http", "ws");
        const fields = new URLSearchParams({
            encoding: this.#encoding,
            sample_rate: String(this.#rate),
            channels: String(this.#channels),
            history: this.#continuity.history(this.#start() / this.#rate),
            ...(this.#session && { resume: this.#session, received: String(this.#received) }),
            ...(this.#model && { model: this.#model }),
            ...(this.#apiKey && { auth_id: this.#apiKey }),
        });
        for (const [name, value] of this.#hints)
            fields.append(name, value);
        address.search = String(fields);
        return address;
    }
    /** The error of a connection that did not open. A WebSocket does not report why, so ask over HTTP. */
    async #refusal() {
        const found = await serverInfo({ url: this.#url, apiKey: this.#apiKey }).catch((error) => error);
        if (found instanceof SlipstreamError)
            return found;
        if (this.#model && !found.models.includes(this.#model)) {
            const message = `${this.#url.host} has no model ${JSON.stringify(this.#model)}: expected one of ${found.models.join(", ")}`;
            return new SlipstreamError(message, { status: 400 });
        }
        return errorOfStatus(200, this.#url, this.#apiKey !== "");
    }
    #link = {
        signal: this.#abort.signal,
        begin: ({ model, delay, session = "", resumed = false, position = 0 }) => {
            Object.assign(this.#transcript, { model, delay });
            this.#flushSent = 0; // a flush without an answer is sent again
            this.#closed = false;
            if (resumed) {
                this.#received--; // `take` counts this message
                this.#sent = Math.round(this.#base * this.#rate) + position;
                return;
            }
            this.#session = session;
            this.#received = 0;
            this.#openWord = null;
            const { first } = this.#tape;
            this.#continuity.begin(this.#transcript.words);
            this.#sent = this.#start();
            this.#base = this.#sent / this.#rate;
            const lost = first / this.#rate - this.#settled;
            if (lost * this.#rate <= 1)
                return;
            this.#settled = first / this.#rate;
            this.#tell({ type: "lost", seconds: lost });
        },
        take: (message) => this.#take(message),
        next: (seconds) => this.#next(seconds),
        changed: () => this.#changed.promise,
        isOwed: () => {
            const owed = this.sentDuration > this.#settled + this.#transcript.delay + 2 * REWIND_SECONDS;
            return owed || this.#flushes.has(this.#flushSent);
        },
    };
    /** Where a connection that the server does not continue begins in the audio. */
    #start() {
        const cut = this.#continuity.cut(this.#transcript.words, this.#settled);
        return Math.max(this.#tape.first, Math.floor(cut * this.#rate + 0.5));
    }
    #next(seconds) {
        if (this.#sent < this.#tape.first)
            throw new Error("audio came faster than it was sent");
        const flush = [...this.#flushes].find(([id]) => id > this.#flushSent);
        if (flush && flush[1].position <= this.#sent) {
            this.#flushSent = flush[0];
            return JSON.stringify({ type: "flush", id: flush[0] });
        }
        const end = Math.min(flush?.[1].position ?? Infinity, this.#sent + Math.round(seconds * this.#rate));
        const bytes = this.#tape.read(this.#sent, end - this.#sent);
        if (bytes) {
            this.#sent += bytes.length / this.#frameBytes;
            this.#notify();
            return bytes;
        }
        if (!this.#closing || this.#closed)
            return null;
        this.#closed = true;
        return CLOSE;
    }
    /** Take a message of the current connection: shift its times, and note how far the text is final. */
    #take(message) {
        for (const name of ["time", "start", "end"]) {
            const times = message;
            if (name in times)
                times[name] += this.#base;
        }
        if (message.type !== "step" && message.type !== "partial")
            this.#received++;
        if (message.type === "history")
            return this.#continuity.keep(message.end, message.text);
        if (message.type === "recovered")
            this.#continuity.forget();
        if (this.#continuity.repeats(message))
            return;
        let settled = this.#settled;
        const { words, turns, delay } = this.#transcript;
        switch (message.type) {
            case "partial":
                this.#openWord = message;
                break;
            case "word": {
                this.#openWord = null;
                settled = message.end;
                const { type: _, ...word } = message;
                words.push(word);
                break;
            }
            case "turn":
                turns.push({ start: message.start, end: message.end });
                break;
            case "step":
                settled = Math.min(message.time - delay - REWIND_SECONDS, this.#openWord?.start ?? Infinity);
                break;
            case "flushed":
                this.#flushes.get(message.id)?.reached.resolve();
                this.#flushes.delete(message.id);
                break;
            case "done":
                this.#session = "";
                settled = this.#base + message.duration;
                break;
        }
        if (settled > this.#settled) {
            this.#settled = settled;
            this.#failures = 0;
            this.#tape.dropBefore(Math.floor(this.#continuity.cut(words, settled) * this.#rate));
            this.#notify();
        }
        if (message.type !== "done")
            this.#tell(message);
    }
    // ------------------------------------------------------------------------------------------------------------ state
    /** Whether there is nothing to connect for: all text is final, and nothing was added since. */
    #isIdle() {
        const isFinal = this.#tape.length - this.#settled * this.#rate < 1;
        return this.#state === "running" && isFinal && !this.#closing && this.#flushes.size === 0;
    }
    async #room() {
        const isFull = () => this.#tape.length - this.#sent > AHEAD_SECONDS * this.#rate ||
            this.#tape.length - Math.max(this.#tape.first, this.#settled * this.#rate) > this.#kept / 2;
        while (this.#state === "running" && isFull())
            await this.#changed.promise;
        if (this.#state === "over")
            await this.#outcome.promise;
    }
    #notify() {
        this.#changed.resolve();
        this.#changed = new Deferred();
    }
    #tell(event) {
        for (const take of this.#iterations)
            take(event);
        this.emit(event.type, event);
    }
    #finish() {
        if (this.#state === "over")
            return;
        this.#transcript.text = this.#transcript.words.map(({ text }) => text).join(" ");
        this.#transcript.duration = this.duration;
        this.#outcome.resolve(this.#transcript);
        for (const { reached } of this.#flushes.values())
            reached.resolve();
        this.#end();
    }
    #fail(error) {
        if (this.#state === "over")
            return;
        this.#outcome.reject(error);
        for (const { reached } of this.#flushes.values())
            reached.reject(error);
        this.#end();
    }
    #end() {
        this.#state = "over";
        this.#abort.abort();
        this.#notify();
        for (const take of this.#iterations)
            take(null);
    }
}
/** Ask a server for its model. Throws a `SlipstreamError` with the HTTP status if it refuses. */
export async function serverInfo({ url, apiKey }) {
    const server = addressOf(url);
    const headers = apiKey ? { "kyutai-api-key": apiKey } : {};
    const response = await fetch(new URL("v1/info", server), { headers, cache: "no-store" }).catch(() => null);
    if (!response?.ok)
        throw errorOfStatus(response?.status ?? 0, server, Boolean(apiKey));
    return (await response.json());
}
function addressOf(url) {
    const text = String(url);
    if (!/^(https?|wss?):\/\//.test(text)) {
        throw new TypeError(`url ${JSON.stringify(text)}: expected an address such as https://asr.example.org`);
    }
    const address = new URL(text);
    address.protocol = address.protocol.replace("ws", "http");
    address.search = address.hash = "";
    if (!address.pathname.endsWith("/"))
        address.pathname += "/";
    return address;
}
function whole(name, value, least, most) {
    if (Number.isInteger(value) && value >= least && value <= most)
        return value;
    throw new RangeError(`${name} ${value}: expected a whole number from ${least} to ${most}`);
}
function number(name, value, least) {
    if (value >= least)
        return value;
    throw new RangeError(`${name} ${value}: expected at least ${least}`);
}
// 0.5, 1, 2, 4, 8, 10, 10 ... seconds, and up to a quarter more, so that clients do not all return at the same time.
function waitSeconds(failures) {
    return Math.min(LONGEST_WAIT_SECONDS, 0.5 * 2 ** failures) * (1 + Math.random() / 4);
}
// Ends early when the browser is online again, or when `signal` is aborted.
async function pause(seconds, signal) {
    let timer;
    await new Promise((resolve) => {
        timer = setTimeout(resolve, seconds * 1000);
        globalThis.addEventListener?.("online", () => resolve(), { once: true, signal });
        signal.addEventListener("abort", () => resolve(), { once: true });
    });
    clearTimeout(timer);
}
