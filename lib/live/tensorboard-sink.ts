/** What a bus says, as TensorBoard shows it. */
import { decodeMessage, type EventMessage } from "../formats";
import type { TensorBoardWriter } from "../monitor";
import type { LiveSink } from "./bus";

/**
 * Writes figures as curves by the names that they have in metrics.jsonl ("train/learningRate"); how many labels and commands were
 * taken in and refused so far, and messages missed, as curves below "live"; warnings, and why a training has ended, as text. Where
 * the file cannot be written, on a full disk say, what was to be written is lost, and the sink goes on.
 */
export class TensorBoardSink implements LiveSink {
  readonly name: string;
  readonly #counts = { accepted: 0, refused: 0, dropped: 0 };
  #failed = false;

  /**
   * @param writer closed with the sink
   * @param onError told once of each row of failures. Default: a warning on the console
   */
  constructor(
    private readonly writer: TensorBoardWriter,
    private readonly onError: (error: Error) => void = ({ message }) => console.warn(`warning: ${message}`),
  ) {
    this.name = writer.path;
  }

  async send(frames: readonly Uint8Array[]): Promise<void> {
    for (const frame of frames) this.#try(() => this.#write(frame));
  }

  async close(): Promise<void> {
    this.#try(() => this.writer.close());
  }

  #try(work: () => void): void {
    try {
      work();
      this.#failed = false;
    } catch (error) {
      if (!this.#failed) this.onError(error as Error);
      this.#failed = true;
    }
  }

  #write(frame: Uint8Array): void {
    const message = decodeMessage(frame, this.name);
    if (message?.type === "event") this.#writeEvent(message.value);
    if (message?.type !== "metrics") return;
    const { what, iteration, values } = message.value;
    const named = Object.entries(values).map(([name, value]) => [`${what}/${name}`, value]);
    this.writer.scalars(iteration, Object.fromEntries(named));
  }

  #writeEvent(event: EventMessage): void {
    const { iteration, kind } = event;
    if (kind === "accepted" || kind === "refused" || kind === "dropped") {
      this.#counts[kind] += kind === "dropped" ? event.count : 1;
      this.writer.scalars(iteration, { [`live/${kind}`]: this.#counts[kind] });
    }
    if (kind === "log" && event.level !== "info") this.writer.text(iteration, "live/warnings", event.text);
    if (kind === "ended") this.writer.text(iteration, "live/ended", event.text);
  }
}
