// Built by "npm run build" from packages/js/src/connection.ts: edit that file. 55cdcb18e1f615e7b7656ff9222a17888b487f8db9ca2cbceb4dcd73962b9e41
// One WebSocket of a client, from its opening to its end.
const CHUNK_SECONDS = 0.1;
const UNSENT_BYTES = 1 << 18; // audio is sent no faster than the server takes it
const SILENT_MS = 15_000; // a server that has text to send and is silent for this long is gone
export const CLOSE = '{"type":"close"}';
/** Hold one conversation with the server. Resolves when it has ended, whatever the reason. */
export async function converse(address, link) {
    const socket = new WebSocket(address);
    const over = new AbortController();
    let watch;
    try {
        return await new Promise((resolve) => {
            let opened = false;
            let closing = false;
            let lastMessage = Infinity;
            const end = (how) => resolve({ opened, ...how });
            link.signal.addEventListener("abort", () => end({ code: 1000 }), { signal: over.signal });
            socket.onopen = () => (opened = true);
            socket.onclose = ({ code, reason }) => end({ code, reason });
            socket.onerror = () => setTimeout(() => end({ code: 1006 })); // Node emits no close event after it
            socket.onmessage = ({ data }) => {
                const message = parse(data);
                if (message === null)
                    return end({ code: 1007, reason: "the server sent a message that is not JSON" });
                if (message.type === "error")
                    return end({ code: message.code, reason: message.message });
                if (message.type !== "queued")
                    lastMessage = performance.now(); // in the queue, a server may be silent for long
                if (message.type === "ready")
                    link.begin(message);
                link.take(message);
                if (message.type === "done" && closing)
                    return end({ done: true });
                if (message.type !== "ready")
                    return;
                const sending = send(socket, link, () => (closing = true));
                sending.catch((error) => end({ code: 1006, reason: error.message }));
            };
            watch = setInterval(() => {
                const isSilent = performance.now() - lastMessage > SILENT_MS;
                if (isSilent && (closing || link.isOwed()))
                    end({ code: 1006, reason: "the server does not respond" });
            }, 1000);
        });
    }
    finally {
        clearInterval(watch);
        over.abort();
        socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
        socket.close();
    }
}
async function send(socket, link, onClose) {
    while (socket.readyState === WebSocket.OPEN) {
        const item = link.next(CHUNK_SECONDS);
        if (item === null) {
            await link.changed();
            continue;
        }
        if (item === CLOSE)
            onClose();
        socket.send(item);
        if (item === CLOSE)
            return;
        while (socket.bufferedAmount > UNSENT_BYTES)
            await new Promise((later) => setTimeout(later, 20));
    }
}
function parse(data) {
    try {
        return JSON.parse(data);
    }
    catch {
        return null;
    }
}
