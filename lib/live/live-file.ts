/** The file that holds what a training has said and been told: frames of messages, readable while it grows. */
import { existsSync } from "node:fs";
import { encodeMessage, type Message, messageOf } from "../formats";
import { FramedFileReader, FramedFileWriter, type FramedFormat, writeFramedFile } from "../formats/framed-stream";
import type { LiveSink } from "./bus";

const FORMAT: FramedFormat = { magic: "DLFSLIVE", version: 1, what: "live file" };

/** An open live file. Close it, or declare it with `await using`. */
export class LiveFileReader implements AsyncDisposable {
  private constructor(private readonly file: FramedFileReader) {}

  /**
   * @param from where to begin: another reader's position, or 0
   * @throws DlfsError naming the file where it is missing
   */
  static async open(path: string, from = 0): Promise<LiveFileReader> {
    return new LiveFileReader(await FramedFileReader.open(path, FORMAT, from));
  }

  /** Bytes that hold whole messages, of which those that were read. */
  get position(): number {
    return this.file.position;
  }

  /**
   * The messages from where the last call ended to the end of the file; another call goes on when it has grown. Messages of kinds
   * that a later dlfs has added are passed over.
   *
   * @throws DlfsError naming file and place where it is damaged, or of a newer version
   */
  async *messages(): AsyncGenerator<Message> {
    for await (const frame of this.file.frames()) {
      const message = messageOf(frame, this.file.path);
      if (message) yield message;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file[Symbol.asyncDispose]();
  }
}

/**
 * Writes a live file of these messages; it appears complete or not at all, in place of one that is there.
 *
 * @param messages made one after the other: they need not be in memory together
 * @throws DlfsError naming the file where it cannot be written
 */
export async function writeLiveFile(path: string, messages: Iterable<Message>): Promise<void> {
  const encoded = function* () {
    for (const message of messages) yield encodeMessage(message);
  };
  await writeFramedFile(path, FORMAT, encoded());
}

/**
 * Appends what a bus says to a live file. A write that fails, of a full disk say, leaves the file as it was, and the frames are kept
 * and tried again with the next ones: the bus counts what there is no room for meanwhile.
 */
export class FileSink implements LiveSink {
  readonly name: string;
  #failure: Error | null = null;
  #closing = false;
  #wake: (() => void) | null = null;

  private constructor(
    private readonly file: FramedFileWriter,
    private readonly retryMs: number,
    private readonly onError: (error: Error) => void,
  ) {
    this.name = file.path;
  }

  /**
   * Starts a file, or goes on with one that is there, behind its last whole message.
   *
   * @param onError told once of each row of failures. Default: a warning on the console
   * @throws DlfsError naming the file where it cannot be opened, is damaged or of a newer version
   */
  static async open(
    path: string,
    { retryMs = 5000, onError }: { retryMs?: number; onError?: (error: Error) => void } = {},
  ): Promise<FileSink> {
    const report = onError ?? ((error: Error) => console.warn(`warning: ${error.message}`));
    if (!existsSync(path)) return new FileSink(await FramedFileWriter.create(path, FORMAT), retryMs, report);
    let position = 0;
    {
      await using reader = await FramedFileReader.open(path, FORMAT);
      for await (const _ of reader.frames());
      position = reader.position;
    }
    return new FileSink(await FramedFileWriter.append(path, FORMAT, position), retryMs, report);
  }

  async send(frames: readonly Uint8Array[]): Promise<void> {
    for (;;) {
      try {
        await this.file.appendEncoded(frames);
        this.#failure = null;
        return;
      } catch (error) {
        if (!this.#failure) this.onError(error as Error);
        this.#failure = error as Error;
        if (this.#closing) throw error;
        await this.#wait();
      }
    }
  }

  async #wait(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, this.retryMs);
    this.#wake = resolve;
    await promise;
    clearTimeout(timer);
    this.#wake = null;
  }

  async close(): Promise<void> {
    this.#closing = true;
    this.#wake?.();
    await this.file[Symbol.asyncDispose]();
  }
}
