/** Names of requests: their ids, and their places in a distributed trace (W3C Trace Context, level 1). */
import { randomBytes } from "node:crypto";

/** Where a request belongs in a trace. */
export interface TraceContext {
  /** 32 hexadecimal digits. */
  readonly traceId: string;
  /** Of this service's part of it, 16 hexadecimal digits. */
  readonly spanId: string;
  /** The caller's part; null where the trace begins here. */
  readonly parentId: string | null;
  readonly flags: string;
}

/** The caller's trace, or a new one where it sends none that is valid. */
export function traceOf(header: string | null): TraceContext {
  const spanId = randomBytes(8).toString("hex");
  const [, version, traceId, parentId, flags, more] =
    /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/.exec(header ?? "") ?? [];
  const valid =
    version !== undefined &&
    version !== "ff" &&
    (version !== "00" || more === undefined) &&
    !/^0+$/.test(traceId as string) &&
    !/^0+$/.test(parentId as string);
  if (!valid) return { traceId: randomBytes(16).toString("hex"), spanId, parentId: null, flags: "00" };
  return { traceId: traceId as string, spanId, parentId: parentId as string, flags: flags as string };
}

/** The header that tells the next service, and the caller, of this one's part. */
export const traceparentOf = ({ traceId, spanId, flags }: TraceContext): string => `00-${traceId}-${spanId}-${flags}`;

/** The client's id of a request where it is one that can be logged and sent back, else a new one. */
export function requestIdOf(header: string | null): string {
  return header !== null && /^[\w.:@+/=-]{1,128}$/.test(header) ? header : crypto.randomUUID();
}
