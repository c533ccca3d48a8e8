// What went wrong, in words for the person at the page. `detail` is the technical reason, shown under Details.

export class Problem extends Error {
  // `retry`: trying again may help. `tries`: how often, in a row. `key`: another key is needed.
  constructor(message, { retry = false, tries = Infinity, key = false, detail = "" } = {}) {
    super(message);
    Object.assign(this, { retry, tries, key, detail });
  }
}

const OF_CODE = {
  1011: ["The server had an internal problem.", { retry: true, tries: 3 }],
  1012: ["The server is restarting.", { retry: true }],
  1013: ["The server is full.", { retry: true }],
  4408: ["The server ended the stream because of a time limit.", { retry: true }],
  4413: ["The connection is too slow.", { retry: true }],
};
const LOST = ["The connection was lost.", { retry: true }];
const MISUNDERSTOOD = ["The server could not continue. Reload the page and try again.", {}];

// Why a stream that had opened ended early: its close code and reason.
export function problemOfClose(code, reason = "") {
  const [message, options] = OF_CODE[code] ?? (code < 1007 ? LOST : MISUNDERSTOOD);
  return new Problem(message, { ...options, detail: `${code} ${reason}`.trim() });
}

// Why a stream did not open: the HTTP status with which the server answers otherwise; 0 if it does not answer.
export function problemOfStatus(status, hasKey) {
  const detail = status ? `HTTP ${status}` : "no answer";
  if (status === 0) return new Problem("The server cannot be reached.", { retry: true, detail });
  if (status === 401) {
    return new Problem(hasKey ? "The server did not accept this key." : "This server needs a key.", { key: true, detail });
  }
  if (status === 403 || status === 421) {
    return new Problem("The server does not accept this page. Open it at the server's own address.", { detail });
  }
  return new Problem("The server is not taking new transcriptions right now.", { retry: true, detail });
}

const OF_MICROPHONE = {
  NotAllowedError: "The microphone is blocked. Allow it in the browser's site settings, then start again.",
  NotFoundError: "No microphone was found. Connect one, or open a file instead.",
  NotReadableError: "The microphone is in use by another program, or was switched off.",
};

export function problemOfMicrophone(error) {
  return new Problem(OF_MICROPHONE[error.name] ?? "The microphone could not be opened.", { detail: String(error) });
}
