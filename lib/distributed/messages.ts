/** What ranks and coordinator tell each other, and what a process' main thread and its agent do. */

/** What must be the same on all ranks, by name: plain data, compared as JSON. */
export type Facts = Readonly<Record<string, unknown>>;

/** What a rank is at. */
export interface RankProgress {
  /**
   * "steps" while it trains: then a rank that does not come to a collective that others wait in hangs. Anything else (building,
   * evaluation, ...) may take its time.
   */
  phase: string;
  /** The step that it is at, from 0. */
  step: number;
  /** Collectives that its device has come to. */
  begun: number;
  /** The last of them. */
  collective: string | null;
}

/** What ranks agree on a step for: "stop", no step from that one on; "meet", they do something together before it. */
export type Agreement = "stop" | "meet";

export type ToCoordinator =
  | { kind: "hello"; rank: number; world: number; pid: number; machine: string; attempt: number; facts: Facts }
  | { kind: "beat"; progress: RankProgress }
  /** A rank's part of an exchange, in the payload. */
  | { kind: "part"; key: string; to: "all" | "root" }
  /** What must be the same on all ranks at a step: names and checksums. */
  | { kind: "agree"; step: number; what: string; values: Record<string, string> }
  /** Asks all ranks to end at the same step, or to meet before the same one. */
  | { kind: "ask"; what: Agreement }
  /** The answer to "hold": the first step that this rank has not begun. */
  | { kind: "held"; step: number }
  | { kind: "failed"; message: string }
  | { kind: "bye" };

export type ToRank =
  /** All are there and agree. host: by which address the others reach this rank. */
  | { kind: "welcome"; host: string }
  /** All ranks' parts of an exchange, one behind the other. */
  | { kind: "parts"; key: string; sizes: number[] }
  | { kind: "hold" }
  /** Before which step that is done. */
  | { kind: "agreed"; step: number; on: Agreement[] }
  | { kind: "abort"; message: string }
  /** All have said bye, and may go. */
  | { kind: "bye" };

/** Milliseconds. */
export interface Patience {
  /** For all ranks to come to the start. */
  join: number;
  /** Between signs of life. */
  beat: number;
  /** Without a sign of life. */
  silence: number;
  /** In steps, behind ranks that wait. */
  hang: number;
}

export const defaultPatience: Patience = { join: 300_000, beat: 1000, silence: 15_000, hang: 20_000 };

/** From the main thread to its agent. */
export type ToAgent =
  | {
      kind: "join";
      rank: number;
      world: number;
      rendezvous: { host: string; port: number };
      attempt: number;
      facts: Facts;
      patience: Patience;
      /** (STEP_WORDS): the step that the main thread is at. */
      shared: SharedArrayBuffer;
    }
  | { kind: "phase"; phase: string }
  | { kind: "communicator"; backend: string; handle: number; names: readonly string[] }
  | { kind: "send"; message: ToCoordinator; payload?: Uint8Array }
  | { kind: "leave" };

/** From the agent to its main thread: what came, and why all is over. */
export type FromAgent =
  | { kind: "message"; message: ToRank; payload: Uint8Array }
  | { kind: "over"; message: string }
  /** The coordinator has been sent that this rank failed. */
  | { kind: "told" }
  | { kind: "left" };
