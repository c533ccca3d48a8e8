// Built by "npm run build" from packages/js/src/tape.ts: edit that file. 140c79a65bf6c460098de4b2aa09de3f2bbfdbecee2222a222ab2625223d157d
// Audio that is not final yet, so that it can be sent again. Positions are frames since the start of the stream.
export class Tape {
    #pieces = [];
    #length = 0;
    #frameBytes;
    constructor(frameBytes) {
        this.#frameBytes = frameBytes;
    }
    /** Frames added so far. */
    get length() {
        return this.#length;
    }
    /** Position of the first frame that is still there. */
    get first() {
        return this.#pieces[0]?.start ?? this.#length;
    }
    /** Add whole frames. */
    append(bytes) {
        if (!bytes.length)
            return;
        this.#pieces.push({ start: this.#length, bytes });
        this.#length += bytes.length / this.#frameBytes;
    }
    /** Drop the pieces that end at or before `position`. */
    dropBefore(position) {
        const isOver = (index) => (this.#pieces[index + 1]?.start ?? this.#length) <= position;
        let count = 0;
        while (count < this.#pieces.length && isOver(count))
            count++;
        this.#pieces.splice(0, count);
    }
    /** Return at most `count` frames from `position` on; null if there are none yet. */
    read(position, count) {
        const piece = this.#pieces.findLast(({ start }) => start <= position);
        if (!piece || position >= this.#length || count <= 0)
            return null;
        const from = (position - piece.start) * this.#frameBytes;
        return piece.bytes.subarray(from, from + count * this.#frameBytes);
    }
}
