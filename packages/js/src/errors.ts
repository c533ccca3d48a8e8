// Why a stream failed, and whether another connection can help.

interface Reason {
  /** Close code of the WebSocket. */
  code?: number;
  /** HTTP status with which the server refuses this client; 0 without a response. */
  status?: number;
  retry?: boolean;
  /** How many failures in a row end the retries. */
  tries?: number;
  cause?: unknown;
}

/** The server refused or ended a stream, cannot be reached, or the microphone cannot be opened. */
export class SlipstreamError extends Error {
  override readonly name = "SlipstreamError";
  /** Close code of the WebSocket, if it had opened. */
  readonly code: number | undefined;
  /** HTTP status with which the server refuses this client; 0 if there is no response. */
  readonly status: number | undefined;
  /** Whether another attempt may succeed. */
  readonly retry: boolean;
  /** @internal */
  readonly tries: number;

  constructor(message: string, { code, status, retry = false, tries = Infinity, cause }: Reason = {}) {
    super(message, { cause });
    this.code = code;
    this.status = status;
    this.retry = retry;
    this.tries = tries;
  }
}

const OF_CODE: Record<number, [string, Reason]> = {
  1011: ["the server failed", { retry: true, tries: 3 }],
  1012: ["the server is restarting", { retry: true }],
  1013: ["the server is full", { retry: true }],
  4408: ["the server ended the stream because of a time limit", { retry: true }],
  4413: ["this client read too slowly", { retry: true }],
};
const LOST: [string, Reason] = ["the connection was lost", { retry: true }];

/** The error of a stream that had opened: its close code, and the server's reason. */
export function errorOfClose(code: number, reason = ""): SlipstreamError {
  const [message, options] = OF_CODE[code] ?? (code < 1007 ? LOST : ["the server refused the stream", {}]);
  return new SlipstreamError(`${message}${reason && `: ${reason}`} (close code ${code})`, { ...options, code });
}

/** The error of a stream that did not open: the HTTP status with which the server answers otherwise. */
export function errorOfStatus(status: number, url: URL, hasKey: boolean): SlipstreamError {
  const server = url.host;
  if (status === 0) {
    const message = `${server} cannot be reached, or does not accept pages of this origin (--allow-origin)`;
    return new SlipstreamError(message, { status, retry: true });
  }
  if (status === 401) {
    return new SlipstreamError(hasKey ? `${server} did not accept the API key` : `${server} needs an API key`, { status });
  }
  if (status === 403 || status === 421) {
    return new SlipstreamError(`${server} does not accept pages of this origin (HTTP status ${status})`, { status });
  }
  if (status === 404) return new SlipstreamError(`${url} is not a Slipstream server (HTTP status 404)`, { status });
  const message = `${server} takes no new streams, or the API key is over its limit (HTTP status ${status})`;
  return new SlipstreamError(message, { status, retry: true });
}
