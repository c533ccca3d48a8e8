// Built by "npm run build" from packages/js/src/events.ts: edit that file. 137e2c3c934a9c26ffdaec231a5b6176f084485ceb61a5dacfb8f264a81028dc
// What a client emits. All times are seconds of the audio that was sent, also after a reconnection.
/** Calls listeners by the name of the event. */
export class Emitter {
    #listeners = new Map();
    /** Call `listener` for each event of a type. Returns a function that removes it. */
    on(type, listener) {
        const listeners = this.#listeners.get(type) ?? new Set();
        this.#listeners.set(type, listeners.add(listener));
        return () => void listeners.delete(listener);
    }
    emit(type, event) {
        for (const listener of this.#listeners.get(type) ?? []) {
            try {
                listener(event);
            }
            catch (error) {
                // The stream continues; the error is reported as uncaught.
                queueMicrotask(() => {
                    throw error;
                });
            }
        }
    }
}
/** A promise with its resolvers. Nobody has to wait for it: a rejection is not reported as unhandled. */
export class Deferred {
    resolve;
    reject;
    promise = new Promise((resolve, reject) => {
        this.resolve = resolve;
        this.reject = reject;
    });
    constructor() {
        this.promise.catch(() => { });
    }
}
