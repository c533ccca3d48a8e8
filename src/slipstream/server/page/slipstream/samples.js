// Built by "npm run build" from packages/js/src/samples.ts: edit that file. 3e333f378416f9805536efcc45ac7a422e8e8afbab3b8eb77cd76b4988a2a053
// Audio as the bytes that a stream carries.
const SAMPLE_BYTES = { pcm_s16le: 2, pcm_s24le: 3, pcm_f32le: 4, mulaw: 1, alaw: 1 };
/** Return the bytes of a sample. Throws a `RangeError` for an unknown encoding. */
export function sampleBytes(encoding) {
    const bytes = SAMPLE_BYTES[encoding];
    if (!bytes) {
        throw new RangeError(`encoding ${JSON.stringify(encoding)}: expected one of ${Object.keys(SAMPLE_BYTES).join(", ")}`);
    }
    return bytes;
}
/** Return samples as bytes of `encoding`. Throws a `TypeError` for samples that cannot become this encoding. */
export function encode(samples, encoding) {
    if (samples instanceof Uint8Array)
        return samples;
    if (samples instanceof ArrayBuffer)
        return new Uint8Array(samples);
    if (samples instanceof Int16Array) {
        if (encoding === "pcm_s16le")
            return bytesOf(samples);
        if (encoding === "pcm_f32le")
            return bytesOf(Float32Array.from(samples, (sample) => sample / 32768));
    }
    else if (samples instanceof Float32Array) {
        const wrong = samples.findIndex((sample) => !Number.isFinite(sample));
        if (wrong >= 0)
            throw new TypeError(`sample ${wrong} is ${samples[wrong]}: expected finite numbers`);
        if (encoding === "pcm_f32le")
            return bytesOf(samples);
        if (encoding === "pcm_s16le")
            return bytesOf(toInt16(samples));
    }
    else {
        throw new TypeError("samples: expected a Float32Array, an Int16Array, a Uint8Array or an ArrayBuffer");
    }
    throw new TypeError(`${encoding}: expected encoded bytes (Uint8Array), got a ${samples.constructor.name}`);
}
/** Return floats as 16-bit integers. Values beyond full scale are clipped. */
export function toInt16(samples) {
    return Int16Array.from(samples, (sample) => Math.round(Math.max(-1, Math.min(1, sample)) * 32767));
}
const bytesOf = (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
