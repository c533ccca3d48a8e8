// One WebSocket of a client, from its opening to its end.

import type { ServerEvent } from "./events.js";

const CHUNK_SECONDS = 0.1;
const UNSENT_BYTES = 1 << 18; // audio is sent no faster than the server takes it
const SILENT_MS = 15_000; // a server that has text to send and is silent for this long is gone

/** Why a connection ended. `done`: the server has sent all text after the end of the audio. */
export interface End {
  opened: boolean;
  done?: boolean;
  code?: number;
  reason?: string;
}

export type ServerMessage =
  | ServerEvent
  | { type: "done"; duration: number; flush_seconds: number }
  | { type: "history"; end: number; text: string }
  | { type: "error"; message: string; code: number };

/** What a connection sends next, and who takes what it receives. */
export interface Link {
  /** Called once the stream has a slot, before audio is sent. */
  begin(ready: Extract<ServerMessage, { type: "ready" }>): void;
  take(message: Exclude<ServerMessage, { type: "error" }>): void;
  /**
   * Return audio of at most this many seconds, a control message, or null where nothing is left to send yet.
   * Throws if audio that comes next was dropped.
   */
  next(seconds: number): Uint8Array | string | null;
  /** Resolves when `next` may return something. */
  changed(): Promise<void>;
  /** Whether the server has text to send. */
  isOwed(): boolean;
  signal: AbortSignal;
}

export const CLOSE = '{"type":"close"}';

/** Hold one conversation with the server. Resolves when it has ended, whatever the reason. */
export async function converse(address: URL, link: Link): Promise<End> {
  const socket = new WebSocket(address);
  const over = new AbortController();
  let watch: ReturnType<typeof setInterval> | undefined;
  try {
    return await new Promise<End>((resolve) => {
      let opened = false;
      let closing = false;
      let lastMessage = Infinity;
      const end = (how: Omit<End, "opened">) => resolve({ opened, ...how });
      link.signal.addEventListener("abort", () => end({ code: 1000 }), { signal: over.signal });
      socket.onopen = () => (opened = true);
      socket.onclose = ({ code, reason }) => end({ code, reason });
      socket.onerror = () => setTimeout(() => end({ code: 1006 })); // Node emits no close event after it
      socket.onmessage = ({ data }) => {
        const message = parse(data);
        if (message === null) return end({ code: 1007, reason: "the server sent a message that is not JSON" });
        if (message.type === "error") return end({ code: message.code, reason: message.message });
        if (message.type !== "queued") lastMessage = performance.now(); // in the queue, a server may be silent for long
        if (message.type === "ready") link.begin(message);
        link.take(message);
        if (message.type === "done" && closing) return end({ done: true });
        if (message.type !== "ready") return;
        const sending = send(socket, link, () => (closing = true));
        sending.catch((error: Error) => end({ code: 1006, reason: error.message }));
      };
      watch = setInterval(() => {
        const isSilent = performance.now() - lastMessage > SILENT_MS;
        if (isSilent && (closing || link.isOwed())) end({ code: 1006, reason: "the server does not respond" });
      }, 1000);
    });
  } finally {
    clearInterval(watch);
    over.abort();
    socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
    socket.close();
  }
}

async function send(socket: WebSocket, link: Link, onClose: () => void): Promise<void> {
  while (socket.readyState === WebSocket.OPEN) {
    const item = link.next(CHUNK_SECONDS);
    if (item === null) {
      await link.changed();
      continue;
    }
    if (item === CLOSE) onClose();
    socket.send(item as string | Uint8Array<ArrayBuffer>);
    if (item === CLOSE) return;
    while (socket.bufferedAmount > UNSENT_BYTES) await new Promise((later) => setTimeout(later, 20));
  }
}

function parse(data: unknown): ServerMessage | null {
  try {
    return JSON.parse(data as string) as ServerMessage;
  } catch {
    return null;
  }
}
