// What went wrong, in words for the person at the page. `detail` is the technical reason, shown under Details.

export class Problem extends Error {
  // `key`: another key is needed.
  constructor(message, { key = false, detail = "" } = {}) {
    super(message);
    Object.assign(this, { key, detail });
  }
}

const OF_CODE = {
  1011: "The server had an internal problem.",
  1012: "The server is restarting.",
  1013: "The server is full.",
  4408: "The server ended the stream because of a time limit.",
  4413: "The connection is too slow.",
};

// Why a stream failed or is opened again, from a `SlipstreamError` of the client.
export function problemOfServer({ code, status, message: detail }, hasKey) {
  if (code !== undefined) {
    const lost = code < 1007 ? "The connection was lost." : "The server could not continue. Reload the page and try again.";
    return new Problem(OF_CODE[code] ?? lost, { detail });
  }
  if (status === 0) return new Problem("The server cannot be reached.", { detail });
  if (status === 401) {
    return new Problem(hasKey ? "The server did not accept this key." : "This server needs a key.", { key: true, detail });
  }
  if (status === 403 || status === 421) {
    return new Problem("The server does not accept this page. Open it at the server's own address.", { detail });
  }
  return new Problem("The server is not taking new transcriptions right now.", { detail });
}

const OF_MICROPHONE = {
  NotAllowedError: "The microphone is blocked. Allow it in the browser's site settings, then start again.",
  NotFoundError: "No microphone was found. Connect one, or open a file instead.",
  NotReadableError: "The microphone is in use by another program, or was switched off.",
};

// Why the recorder did not start. Its error has no cause where the browser offers no microphone.
export function problemOfMicrophone({ message: detail, cause }) {
  if (!cause) {
    const message = "Browsers allow the microphone only over HTTPS or on localhost. You can still open a file.";
    return new Problem(message, { detail });
  }
  return new Problem(OF_MICROPHONE[cause.name] ?? "The microphone could not be opened.", { detail });
}
