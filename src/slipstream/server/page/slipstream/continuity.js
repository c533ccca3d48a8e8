// Built by "npm run build" from packages/js/src/continuity.ts: edit that file. 0948adc688a265f9210fb27f8a3f8329ee5827340d0c04eab55814f28056ac82
// Where a new connection begins in the audio, and which of its events repeat those of earlier connections.
const CONTEXT_SECONDS = 30; // audio before the text that is not final, so that the model has context
const TAIL_SECONDS = 0.5; // a word may sound this much longer than its end states: audio is never cut there
const SAME_START_SECONDS = 0.16; // a word with the same text that starts this close to a final word is that word again
const FRAME_SECONDS = 0.08;
export class Continuity {
    #history = []; // the model's text, in frames of the whole stream
    #last = null; // the last word that was final when the connection began
    #turnEnded = -1;
    #turnStart = null;
    /** Keep the model's text of the frames before `end`, which a server that does not hold the stream continues. */
    keep(end, text) {
        while ((this.#history.at(-1)?.end ?? 0) >= end)
            this.#history.pop(); // another model has written it
        this.#history.push({ end, text });
    }
    /** Forget the model's text: the model was reset. */
    forget() {
        this.#history = [];
    }
    /** What a connection says about the audio that it begins with, in seconds. */
    history(start) {
        const first = Math.round(start / FRAME_SECONDS);
        this.#history = this.#history.filter(({ end }) => end >= first);
        return [first, ...this.#history.map(({ text }) => text)].join(".");
    }
    /** Begin a connection that sends audio again. */
    begin(words) {
        this.#last = words.at(-1) ?? null;
    }
    /** The start of a word or a frame of silence, at least the context before the text that is not final. */
    cut(words, settled) {
        let cut = Math.max(0, settled - CONTEXT_SECONDS);
        let following = cut + TAIL_SECONDS;
        const index = words.findLastIndex(({ start }) => start < cut);
        if (index >= 0) {
            const { start, end } = words[index];
            following = Math.min(following, words[index + 1]?.start ?? following);
            if (cut < Math.min(end + TAIL_SECONDS, following))
                cut = start;
        }
        return Math.floor(cut / FRAME_SECONDS + 1e-6) * FRAME_SECONDS;
    }
    /** Whether an event repeats an earlier one. Times are those of the whole stream; a turn starts with its first word. */
    repeats(message) {
        const last = this.#last;
        switch (message.type) {
            case "partial":
                return last !== null && message.start < last.end - FRAME_SECONDS / 2;
            case "word":
                if (last !== null) {
                    const isSame = message.text === last.text && Math.abs(message.start - last.start) <= SAME_START_SECONDS;
                    if (isSame || (message.start + message.end) / 2 < last.end)
                        return true;
                    this.#last = null;
                }
                this.#turnStart ??= message.start;
                return false;
            case "end_of_turn": {
                const isEarlier = message.time <= this.#turnEnded;
                this.#turnEnded = Math.max(this.#turnEnded, message.time);
                return isEarlier;
            }
            case "turn":
                if (this.#turnStart === null || message.end <= this.#turnStart)
                    return true;
                message.start = this.#turnStart;
                this.#turnStart = null;
                return false;
            default:
                return false;
        }
    }
}
