// What a client emits. All times are seconds of the audio that was sent, also after a reconnection.

import type { SlipstreamError } from "./errors.js";

/** The stream has a slot. Emitted again after each reconnection. */
export interface Ready {
  type: "ready";
  model: string;
  /** How far the text is behind the audio, in seconds. */
  delay: number;
  /** Identifies the stream in the server's log. */
  request_id: string;
  /** What another connection gives to continue the stream, if the server holds it. */
  session?: string;
  /** Whether this connection continues the stream of an earlier one. */
  resumed?: boolean;
  /** Samples of a continued stream that the server has. */
  position?: number;
}

/** No slot is free yet. Position 1 is next. */
export interface Queued {
  type: "queued";
  position: number;
  request_id: string;
}

/** A frame was processed. A slow connection may miss some. */
export interface Step {
  type: "step";
  index: number;
  /** Seconds of audio processed so far. */
  time: number;
  /** Probabilities that no new word starts within 0.5, 1, 2 and 3 s; empty if the model has none. */
  pause: number[];
  /** Samples at 24 kHz that the server has received and not processed yet. */
  buffered: number;
  /** Probability that the speaker has finished, which ends a turn above the model's threshold; absent if the model has none. */
  end_of_turn?: number;
}

/** A word that is still being written. The next one with the same start replaces it. */
export interface Partial {
  type: "partial";
  text: string;
  start: number;
}

/** A final word. */
export interface Word {
  type: "word";
  text: string;
  start: number;
  end: number;
  /** 0 to 1. */
  confidence: number;
  /** The probability that words are missing before it, if it is above 0. */
  omission?: number;
  /** Other texts of a doubtful word, if the client asks for alternatives. */
  alternatives?: { text: string; confidence: number }[];
  /** Its language and the probability of it, if the client names languages. */
  language?: string;
  language_confidence?: number;
}

/** The speaker has finished. Text of the audio before `time` may still follow, for up to the model's delay. */
export interface EndOfTurn {
  type: "end_of_turn";
  time: number;
}

/** A whole turn, once its last word is final. */
export interface Turn {
  type: "turn";
  start: number;
  end: number;
}

/** The text of all audio before a `flush` has been sent. */
export interface Flushed {
  type: "flushed";
  id: number;
}

/** The server's model had stopped writing, or repeated itself, and was reset. A few words may be missing. */
export interface Recovered {
  type: "recovered";
  time: number;
  reason: string;
}

/** The connection ended; a new one follows after `seconds`. The word that was being written comes again. */
export interface Reconnecting {
  type: "reconnecting";
  error: SlipstreamError;
  seconds: number;
}

/** Audio was dropped, because it came faster than it could be sent for longer than `keepSeconds`. */
export interface Lost {
  type: "lost";
  seconds: number;
}

export type ServerEvent = Ready | Queued | Step | Partial | Word | EndOfTurn | Turn | Flushed | Recovered;
export type ClientEvent = ServerEvent | Reconnecting | Lost;
export type ClientEvents = { [Type in ClientEvent["type"]]: Extract<ClientEvent, { type: Type }> };

/** The text of a stream, with the fields of the command line's JSON format. */
export interface Transcript {
  text: string;
  words: Omit<Word, "type">[];
  turns: Omit<Turn, "type">[];
  /** Seconds of audio. */
  duration: number;
  model: string;
  delay: number;
}

/** Calls listeners by the name of the event. */
export class Emitter<Events> {
  readonly #listeners = new Map<keyof Events, Set<(event: never) => void>>();

  /** Call `listener` for each event of a type. Returns a function that removes it. */
  on<Type extends keyof Events>(type: Type, listener: (event: Events[Type]) => void): () => void {
    const listeners = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  protected emit<Type extends keyof Events>(type: Type, event: Events[Type]): void {
    for (const listener of this.#listeners.get(type) ?? []) {
      try {
        (listener as (event: Events[Type]) => void)(event);
      } catch (error) {
        // The stream continues; the error is reported as uncaught.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}

/** A promise with its resolvers. Nobody has to wait for it: a rejection is not reported as unhandled. */
export class Deferred<Value> {
  resolve!: (value: Value) => void;
  reject!: (error: Error) => void;
  readonly promise = new Promise<Value>((resolve, reject) => {
    this.resolve = resolve;
    this.reject = reject;
  });

  constructor() {
    this.promise.catch(() => {});
  }
}
