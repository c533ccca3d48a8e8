// Built by "npm run build" from packages/js/src/events.ts: edit that file. bc5f059fff929b6c08d49ef7e4cd362060d7b3dbb83faec5d384d4001a61c9b6
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
