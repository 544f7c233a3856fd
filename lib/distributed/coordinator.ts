import { createServer, type Server, type Socket } from "node:net";
import { differences, listed } from "./differences";
import { encodeFrame, FrameReader } from "./frames";
import type { Agreement, Patience, RankProgress, ToCoordinator, ToRank } from "./messages";

interface Member {
  readonly rank: number;
  readonly socket: Socket;
  readonly hello: Extract<ToCoordinator, { kind: "hello" }>;
  progress: RankProgress;
  /** When it was last heard of, and when its progress last changed. */
  heard: number;
  advanced: number;
  leaving: boolean;
}

interface Exchange {
  to: "all" | "root";
  parts: Map<number, Uint8Array>;
}

/**
 * Where all ranks meet: listens on rank 0's side, waits until all have come and agree, passes on what they exchange, and watches
 * them. One that ends, falls silent, hangs or differs ends all, with a message that names it, its step and its collective.
 */
export class Coordinator {
  readonly #server: Server;
  readonly #members = new Map<number, Member>();
  readonly #exchanges = new Map<string, Exchange>();
  readonly #agreements = new Map<string, Map<number, Record<string, string>>>();
  /** Answers to "hold", while ranks agree on a step. */
  #held: Map<number, number> | null = null;
  /** What the step is for. */
  readonly #asked = new Set<Agreement>();
  #stops = false;
  #welcomed = false;
  #over: string | null = null;
  readonly #timer: ReturnType<typeof setInterval>;
  readonly #started: number;

  private constructor(
    readonly world: number,
    readonly attempt: number,
    readonly patience: Patience,
  ) {
    this.#started = performance.now();
    this.#server = createServer((socket) => this.#accept(socket));
    this.#timer = setInterval(() => this.#watch(), Math.min(patience.beat, 1000));
  }

  /** Listens on all of this machine's addresses. */
  static listen(port: number, world: number, attempt: number, patience: Patience): Promise<Coordinator> {
    return new Promise((resolve, reject) => {
      const coordinator = new Coordinator(world, attempt, patience);
      const server = coordinator.#server;
      server.once("error", (error) => {
        clearInterval(coordinator.#timer);
        reject(error);
      });
      server.listen({ port, host: "::", backlog: 1024 }, () => resolve(coordinator));
    });
  }

  close(): void {
    clearInterval(this.#timer);
    this.#server.close();
    for (const { socket } of this.#members.values()) socket.end();
  }

  #accept(socket: Socket): void {
    socket.setNoDelay(true);
    const reader = new FrameReader<ToCoordinator>();
    let member: Member | null = null;
    socket.on("data", (chunk: Uint8Array) => {
      try {
        for (const { message, payload } of reader.push(chunk)) {
          if (message.kind === "hello") member = this.#greet(socket, message);
          else if (member) this.#receive(member, message, payload);
        }
      } catch {
        socket.destroy(); // no rank: something else that found the port
      }
    });
    const closed = () => {
      if (member && !member.leaving) this.#abort(`${this.#name(member)} ended ${this.#place(member)}`, member.rank);
    };
    socket.on("close", closed);
    socket.on("error", closed);
  }

  #greet(socket: Socket, hello: Extract<ToCoordinator, { kind: "hello" }>): Member | null {
    const { rank, world, attempt, machine } = hello;
    const refuse = (message: string) => {
      this.#send(socket, { kind: "abort", message });
      socket.end();
      return null;
    };
    if (this.#over) return refuse(this.#over);
    if (attempt !== this.attempt)
      return refuse(`rank ${rank} (${machine}) belongs to start ${attempt}, this is ${this.attempt}`);
    const earlier = this.#members.get(rank);
    const now = performance.now();
    const progress = { phase: "start", step: 0, begun: 0, collective: null };
    const member: Member = { rank, socket, hello, progress, heard: now, advanced: now, leaving: false };
    if (world !== this.world || !(rank < this.world)) {
      this.#abort(`${this.#name(member)} says that there are ${world} ranks, rank 0 that there are ${this.world}`);
      return refuse(this.#over!);
    }
    if (earlier) {
      const second = `process ${hello.pid} on ${machine} is rank ${rank} too`;
      this.#abort(`${this.#name(earlier)} is there twice: ${second}`);
      return refuse(this.#over!);
    }
    this.#members.set(rank, member);
    if (this.#members.size === this.world) this.#begin();
    return member;
  }

  /** All are there: do they agree? */
  #begin(): void {
    const first = this.#members.get(0)!;
    const found: string[] = [];
    for (const member of this.#inOrder()) {
      const lines = differences(first.hello.facts, member.hello.facts);
      if (lines.length > 0) found.push(`${this.#name(member)} and rank 0 differ: ${listed(lines)}`);
    }
    if (found.length > 0) {
      this.#abort(`the ranks disagree. ${listed(found)}`);
      return;
    }
    // A rank that came by way of the loopback interface is on this machine, which others reach by the address they came to.
    const outside = this.#inOrder().find(({ socket }) => !isLoopback(socket.remoteAddress));
    for (const { socket } of this.#inOrder()) {
      const remote = plain(socket.remoteAddress);
      const host = isLoopback(socket.remoteAddress) && outside ? plain(outside.socket.localAddress) : remote;
      this.#send(socket, { kind: "welcome", host });
    }
    this.#welcomed = true;
    const now = performance.now();
    for (const member of this.#members.values()) Object.assign(member, { heard: now, advanced: now });
  }

  #receive(member: Member, message: ToCoordinator, payload: Uint8Array): void {
    const now = performance.now();
    member.heard = now;
    switch (message.kind) {
      case "beat": {
        const { phase, step, begun } = member.progress;
        const { progress } = message;
        if (phase !== progress.phase || step !== progress.step || begun !== progress.begun) member.advanced = now;
        member.progress = progress;
        break;
      }
      case "part":
        this.#exchange(member, message.key, message.to, payload);
        break;
      case "agree":
        this.#compare(member, message);
        break;
      case "ask":
        if (message.what === "stop" && this.#stops) break;
        this.#stops ||= message.what === "stop";
        this.#asked.add(message.what);
        if (this.#held) break; // it is agreed on with what was asked before
        this.#held = new Map();
        this.#tellAll({ kind: "hold" });
        break;
      case "held":
        this.#held?.set(member.rank, message.step);
        if (this.#held?.size !== this.world) break;
        this.#tellAll({ kind: "agreed", step: Math.max(...this.#held.values()), on: [...this.#asked] });
        this.#held = null;
        this.#asked.clear();
        break;
      case "failed":
        member.leaving = true; // it ends by itself, and the others hear why
        this.#abort(`${this.#name(member)} failed ${this.#place(member)}: ${message.message}`, member.rank);
        break;
      case "bye":
        member.leaving = true;
        if (this.#members.size === this.world && this.#inOrder().every(({ leaving }) => leaving))
          this.#tellAll({ kind: "bye" });
        break;
    }
  }

  #exchange(member: Member, key: string, to: "all" | "root", payload: Uint8Array): void {
    const exchange = this.#exchanges.get(key) ?? { to, parts: new Map() };
    this.#exchanges.set(key, exchange);
    exchange.parts.set(member.rank, payload);
    if (exchange.parts.size < this.world) return;
    this.#exchanges.delete(key);
    const parts = Array.from({ length: this.world }, (_, rank) => exchange.parts.get(rank)!);
    const whole = encodeFrame({ kind: "parts", key, sizes: parts.map((p) => p.byteLength) }, joined(parts));
    const sizes = parts.map(() => 0);
    const nothing = encodeFrame({ kind: "parts", key, sizes });
    for (const { rank, socket } of this.#members.values())
      socket.write(exchange.to === "all" || rank === 0 ? whole : nothing);
  }

  /** Compares what must be the same on all ranks once all have told; the ranks that differ from most end all. */
  #compare(member: Member, { step, what, values }: Extract<ToCoordinator, { kind: "agree" }>): void {
    const key = `${what} ${step}`;
    const told = this.#agreements.get(key) ?? new Map<number, Record<string, string>>();
    this.#agreements.set(key, told);
    told.set(member.rank, values);
    if (told.size < this.world) return;
    this.#agreements.delete(key);
    const groups = Map.groupBy(told.keys(), (rank) => JSON.stringify(told.get(rank)));
    if (groups.size === 1) return;
    // The largest group is right; of equal ones, that of the lowest rank.
    const sorted = [...groups.values()].sort((a, b) => b.length - a.length || Math.min(...a) - Math.min(...b));
    const right = sorted[0]!;
    const wrong = sorted
      .slice(1)
      .flat()
      .sort((a, b) => a - b);
    const [one] = wrong as [number];
    const names = Object.keys(values).filter((name) => told.get(one)![name] !== told.get(right[0]!)![name]);
    this.#abort(
      `${wrong.map((rank) => this.#name(this.#members.get(rank)!)).join(", ")} diverged: after step ${step} ${what} ` +
        `differ from those of rank ${right[0]} in ${listed(names)}`,
    );
  }

  #watch(): void {
    if (this.#over) return;
    const now = performance.now();
    if (!this.#welcomed) {
      if (now - this.#started < this.patience.join) return;
      const missing = Array.from({ length: this.world }, (_, rank) => rank).filter((rank) => !this.#members.has(rank));
      this.#abort(
        `${missing.length === 1 ? "rank" : "ranks"} ${listed(missing.map(String))} of ${this.world} did not come within ` +
          `${Math.round(this.patience.join / 1000)} s`,
      );
      return;
    }
    const members = this.#inOrder().filter(({ leaving }) => !leaving);
    for (const member of members) {
      if (now - member.heard < this.patience.silence) continue;
      this.#abort(
        `${this.#name(member)} has given no sign of life for ${seconds(now - member.heard)} ${this.#place(member)}`,
      );
      return;
    }
    const training = members.filter(({ progress }) => progress.phase === "steps");
    const first = Math.max(...training.map(({ progress }) => progress.begun));
    const waiting = training.filter(({ progress }) => progress.begun === first);
    const stuck = training.find(
      (member) => member.progress.begun < first && now - member.advanced >= this.patience.hang,
    );
    if (!stuck || waiting.some(({ advanced }) => now - advanced < this.patience.hang)) return;
    const [other] = waiting as [Member];
    const { step, collective } = other.progress;
    this.#abort(
      `${this.#name(stuck)} hangs ${this.#place(stuck)}: for ${seconds(now - stuck.advanced)} it has not come to what ` +
        `rank ${other.rank} waits in, step ${step}, collective "${collective}"`,
    );
  }

  #abort(message: string, except?: number): void {
    if (this.#over) return;
    this.#over = message;
    for (const { rank, socket } of this.#members.values())
      if (rank !== except) this.#send(socket, { kind: "abort", message });
  }

  #tellAll(message: ToRank): void {
    for (const { socket } of this.#members.values()) this.#send(socket, message);
  }

  #send(socket: Socket, message: ToRank): void {
    if (!socket.destroyed) socket.write(encodeFrame(message));
  }

  #inOrder(): Member[] {
    return [...this.#members.values()].sort((a, b) => a.rank - b.rank);
  }

  #name({ rank, hello: { pid, machine } }: Member): string {
    return `rank ${rank} (process ${pid} on ${machine})`;
  }

  #place({ progress }: Member): string {
    return describeProgress(progress);
  }
}

/** "in step 17, after collective "gradients 2 of 6"". */
export function describeProgress({ phase, step, collective }: RankProgress): string {
  const last = collective === null ? "before any collective" : `in or after collective "${collective}"`;
  return phase === "steps" ? `in step ${step}, ${last}` : `during ${phase}, step ${step}, ${last}`;
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.byteLength;
  }
  return all;
}

const seconds = (ms: number): string => `${Math.round(ms / 1000)} s`;

/** An address without the prefix that IPv4's have on a socket of both kinds. */
const plain = (address = ""): string => address.replace(/^::ffff:/, "");

const isLoopback = (address = ""): boolean => /^(127\.|::1$)/.test(plain(address));
