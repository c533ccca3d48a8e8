// Audio as the bytes that a stream carries.

const SAMPLE_BYTES = { pcm_s16le: 2, pcm_s24le: 3, pcm_f32le: 4, mulaw: 1, alaw: 1 } as const;

/** The encoding of the bytes that are sent. */
export type Encoding = keyof typeof SAMPLE_BYTES;

/** Samples: floats within [-1, 1], 16-bit integers, or bytes that are encoded already. Channels are interleaved. */
export type Samples = Float32Array | Int16Array | Uint8Array | ArrayBuffer;

/** Return the bytes of a sample. Throws a `RangeError` for an unknown encoding. */
export function sampleBytes(encoding: Encoding): number {
  const bytes = SAMPLE_BYTES[encoding];
  if (!bytes) {
    throw new RangeError(`encoding ${JSON.stringify(encoding)}: expected one of ${Object.keys(SAMPLE_BYTES).join(", ")}`);
  }
  return bytes;
}

/** Return samples as bytes of `encoding`. Throws a `TypeError` for samples that cannot become this encoding. */
export function encode(samples: Samples, encoding: Encoding): Uint8Array {
  if (samples instanceof Uint8Array) return samples;
  if (samples instanceof ArrayBuffer) return new Uint8Array(samples);
  if (samples instanceof Int16Array) {
    if (encoding === "pcm_s16le") return bytesOf(samples);
    if (encoding === "pcm_f32le") return bytesOf(Float32Array.from(samples, (sample) => sample / 32768));
  } else if (samples instanceof Float32Array) {
    const wrong = samples.findIndex((sample) => !Number.isFinite(sample));
    if (wrong >= 0) throw new TypeError(`sample ${wrong} is ${samples[wrong]}: expected finite numbers`);
    if (encoding === "pcm_f32le") return bytesOf(samples);
    if (encoding === "pcm_s16le") return bytesOf(toInt16(samples));
  } else {
    throw new TypeError("samples: expected a Float32Array, an Int16Array, a Uint8Array or an ArrayBuffer");
  }
  throw new TypeError(`${encoding}: expected encoded bytes (Uint8Array), got a ${samples.constructor.name}`);
}

/** Return floats as 16-bit integers. Values beyond full scale are clipped. */
export function toInt16(samples: Float32Array): Int16Array {
  return Int16Array.from(samples, (sample) => Math.round(Math.max(-1, Math.min(1, sample)) * 32767));
}

const bytesOf = (array: Int16Array | Float32Array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
