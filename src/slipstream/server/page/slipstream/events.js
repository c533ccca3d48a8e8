// Built by "npm run build" from packages/js/src/events.ts: edit that file. 724539548390f30d07ae0adf02ce2578e0d4af5716c51060a259d7dba5f0e2e3
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
