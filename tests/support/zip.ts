/** Writes ZIP archives for tests. */
import { crc32, deflateRawSync } from "node:zlib";

export interface ZipOptions {
  /** Whether to compress. Default: true. */
  deflate?: boolean;
  /** Sizes and places as fields of 64 bits, as in archives beyond 4 GiB. */
  zip64?: boolean;
  /** Spoils an entry's header in the directory. */
  spoil?: (name: string, header: DataView) => void;
}

export function zipOf(files: Record<string, string | Uint8Array>, options: ZipOptions = {}): Uint8Array<ArrayBuffer> {
  const { deflate = true, zip64 = false, spoil } = options;
  const parts: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let offset = 0;
  const add = (part: Uint8Array): void => {
    parts.push(part);
    offset += part.length;
  };
  for (const [name, content] of Object.entries(files)) {
    const bytes = typeof content === "string" ? Buffer.from(content) : content;
    const stored = deflate ? deflateRawSync(bytes) : bytes;
    const encoded = Buffer.from(name);
    const start = offset;
    const fields = (header: DataView, at: number): void => {
      header.setUint16(at, 20, true);
      header.setUint16(at + 2, 1 << 11, true); // the name is UTF-8
      header.setUint16(at + 4, deflate ? 8 : 0, true);
      header.setUint32(at + 10, crc32(bytes), true);
      header.setUint32(at + 14, zip64 ? 0xffffffff : stored.length, true);
      header.setUint32(at + 18, zip64 ? 0xffffffff : bytes.length, true);
      header.setUint16(at + 22, encoded.length, true);
    };
    const local = new DataView(new ArrayBuffer(30));
    local.setUint32(0, 0x04034b50, true);
    fields(local, 4);
    local.setUint16(28, 4, true); // an extra field that the directory does not have
    add(new Uint8Array(local.buffer));
    add(encoded);
    add(Uint8Array.of(0x99, 0x99, 0, 0));
    add(stored);
    const extra = new DataView(new ArrayBuffer(zip64 ? 28 : 0));
    if (zip64) {
      extra.setUint16(0, 1, true);
      extra.setUint16(2, 24, true);
      for (const [i, value] of [bytes.length, stored.length, start].entries())
        extra.setBigUint64(4 + 8 * i, BigInt(value), true);
    }
    const central = new DataView(new ArrayBuffer(46));
    central.setUint32(0, 0x02014b50, true);
    fields(central, 6);
    central.setUint16(30, extra.byteLength, true);
    central.setUint32(42, zip64 ? 0xffffffff : start, true);
    spoil?.(name, central);
    directory.push(new Uint8Array(central.buffer), encoded, new Uint8Array(extra.buffer));
  }
  const start = offset;
  for (const part of directory) add(part);
  const length = offset - start;
  const count = Object.keys(files).length;
  if (zip64) {
    const end = new DataView(new ArrayBuffer(56 + 20));
    end.setUint32(0, 0x06064b50, true);
    for (const [i, value] of [count, count, length, start].entries()) end.setBigUint64(24 + 8 * i, BigInt(value), true);
    end.setUint32(56, 0x07064b50, true);
    end.setBigUint64(64, BigInt(offset), true);
    add(new Uint8Array(end.buffer));
  }
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, zip64 ? 0xffff : count, true);
  end.setUint16(10, zip64 ? 0xffff : count, true);
  end.setUint32(12, zip64 ? 0xffffffff : length, true);
  end.setUint32(16, zip64 ? 0xffffffff : start, true);
  add(new Uint8Array(end.buffer));
  return new Uint8Array(Buffer.concat(parts));
}
