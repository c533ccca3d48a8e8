// Built by "npm run build" from packages/js/src/continuity.ts: edit that file. 841b5e19c6dea9dff0b0cf2ed0be1421318ee937ee3d95727123a748eeb355d5
// Where a new connection begins in the audio, and which of its events repeat those of earlier connections.
const CONTEXT_SECONDS = 8; // audio before the text that is not final, so that the model has context
const TAIL_SECONDS = 0.5; // a word may sound this much longer than its end states: audio is never cut there
const SAME_START_SECONDS = 0.16; // a word with the same text that starts this close to a final word is that word again
const FRAME_SECONDS = 0.08;
export class Continuity {
    #last = null; // the last word that was final when the connection began
    #turnEnded = -1;
    #turnStart = null;
    /** Begin a connection that sends audio again. Returns where its audio starts, in seconds. */
    begin(words, settled) {
        this.#last = words.at(-1) ?? null;
        return this.cut(words, settled);
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
